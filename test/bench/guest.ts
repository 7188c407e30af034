/**
 * The machine with ublk, and what is attached there: our devices, the kernel's nbd client. One cell is one fio run on one of
 * them, with the CPU time of the guest and of the servers outside during the same window.
 */
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Machine, MachineProcess } from '../vm/machine.ts';
import { Vm } from '../vm/vm.ts';
import { busyUs, idleUs, processTimes, threadsUs, virtualCpuUs } from './cpu.ts';
import { type DeviceSpec, isOurs, OURS } from './devices.ts';
import { fioArguments, type Job, parseFio } from './fio.ts';
import { type Cleanup, describeExit } from './processes.ts';
import type { Competitor, Metrics } from './rounds.ts';
import type { Target } from './targets.ts';

const SECTOR_BYTES = 512;
/** Beyond fio's own time: start of the programs, an emulated machine. */
const CELL_SLACK_MS = 45_000;
const WINDOW_MARGIN_S = 1;
const ATTACH_MS_MAX = 90_000;
/** Block size in KiB, depth: a round of the warm-up, a while of each. */
const WARM_UP = [
  [4, 1],
  [4, 32],
  [64, 16],
  [512, 8],
] as const;
const WARM_UP_S = 2;
const WARM_UP_ROUNDS_MAX = 6;
/** V8 has compiled what it will when its threads take less than this share of a CPU. */
const COMPILING_SHARE_MAX = 0.02;
/** The kernel's own devices have nothing to compile. */
const WARM_UP_KERNEL_S = 1;
const SCRIPTS = join(import.meta.dirname, 'guest');
const CELL_SCRIPT = '/tmp/cell.sh';
/** md devices are numbered; the first ones may be the machine's own. */
const MIRROR_NUMBER = 100;
const ATTACH_PROGRAM = join(import.meta.dirname, '../tools/attach.ts');

export interface Timing {
  readonly rampS: number;
  readonly runtimeS: number;
}

/** What the agent counts; see agent/datapath/counters.ts. */
interface AgentCounters {
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly enters: number;
  readonly sqes: number;
  readonly zeroCopySends: number;
  readonly zeroCopyCopied: number;
}

interface Device {
  /** As in /sys/block. */
  readonly name: string;
  /** Of the process that serves it; 0 for devices of the kernel's own. */
  readonly pid: number;
  readonly targets: readonly Target[];
  readonly counters: (() => Promise<AgentCounters>) | null;
  /** Whether the kernel says which sends without a copy it copied: SEND_ZC does, splice does not. */
  readonly tellsCopies?: boolean;
}

export class Guest {
  readonly machine: Machine;
  readonly #timing: Timing;
  readonly #qemuPid: number;
  #nbdDevices = 0;
  #mirrors = 0;
  #nvmeUsed = 0;
  #cells = 0;

  private constructor(machine: Machine, timing: Timing) {
    this.machine = machine;
    this.#timing = timing;
    this.#qemuPid = machine instanceof Vm ? (machine.pids.at(-1) ?? 0) : 0;
  }

  static async boot(options: {
    network: 'tap' | 'slirp';
    timing: Timing;
    cleanup: Cleanup;
    onProgress: (message: string) => void;
  }): Promise<Guest> {
    const machine = await Vm.boot({ network: options.network, onProgress: options.onProgress });
    options.cleanup.add(() => machine.close());
    await machine.check('modprobe nbd max_part=0 nbds_max=16', { timeoutMs: ATTACH_MS_MAX });
    // A copy: the original is on a file system that changes when somebody edits it meanwhile.
    await machine.check(`cp ${SCRIPTS}/cell.sh ${CELL_SCRIPT}`, { timeoutMs: ATTACH_MS_MAX });
    return new Guest(machine, options.timing);
  }

  /** Under which address the guest reaches servers on the host. */
  hostAddress(server: { readonly host: string }): string {
    return this.machine.hostNetns === null ? this.machine.hostAddress : server.host;
  }

  /** A device by its specification, over the first of the targets. Throws with what the programs said. */
  async attach(
    spec: DeviceSpec,
    options: { sizeBytes: number; nbd: readonly Target[]; nvme: readonly Target[] },
  ): Promise<Competitor> {
    const isNvme = spec.kind === 'nvme-tcp';
    // Two connections to one NVMe subsystem would be two paths to one disk.
    const free = isNvme ? options.nvme.slice(this.#nvmeUsed) : options.nbd;
    const targets = free.slice(0, spec.mirrors);
    if (targets.length < spec.mirrors)
      throw new BlockwireError('BW_INVALID_ARGUMENT', `${spec.name}: there are ${free.length} servers left`);
    if (isNvme) this.#nvmeUsed += spec.mirrors;
    if (isOurs(spec.kind)) {
      const queues = spec.queues > 1 ? ['--queues', String(spec.queues)] : [];
      const small = spec.smallKib === null ? [] : ['--small', String(spec.smallKib * 1024)];
      const polling = spec.busyPollUs === null ? [] : ['--busy-poll', String(spec.busyPollUs)];
      const flags = [...OURS[spec.kind], ...queues, ...small, ...polling];
      const tellsCopies = spec.kind !== 'splice';
      return this.#attachOurs(spec.name, { flags, sizeBytes: options.sizeBytes, targets, tellsCopies });
    }
    const disks: string[] = [];
    for (const target of targets) {
      disks.push(
        spec.kind === 'nvme-tcp'
          ? await this.#connectNvme(target)
          : await this.#connectNbd(target, spec.connections),
      );
    }
    const name = disks.length === 1 ? disks[0]! : await this.#mirror(disks);
    return this.#competitor(spec.name, { name, pid: 0, targets, counters: null });
  }

  async #attachOurs(
    name: string,
    options: {
      flags: readonly string[];
      sizeBytes: number;
      targets: readonly Target[];
      tellsCopies: boolean;
    },
  ): Promise<Competitor> {
    const { flags, sizeBytes, targets, tellsCopies } = options;
    const replicas = targets.map(({ host, port, exportName }) => `--replica ${host}:${port}/${exportName}`);
    const lines = new LineWaiter();
    const attached = this.machine.start(
      `echo "pid $$"; exec node ${ATTACH_PROGRAM} --size ${sizeBytes} ${flags.join(' ')} ${replicas.join(' ')}`,
      { onOutput: (chunk) => lines.add(chunk) },
    );
    const pid = Number(await firstWord(attached, /^pid (\d+)$/m));
    const device = await firstWord(attached, /^\/dev\/(ublkb\d+)$/m);
    return this.#competitor(name, {
      name: device,
      pid,
      targets,
      tellsCopies,
      counters: async () => {
        const answer = lines.next(/^\{"counters":/);
        attached.write('counters\n');
        return readCounters(await answer);
      },
    });
  }

  /** The kernel's nbd client; returns the disk's name. */
  async #connectNbd({ host, port, exportName }: Target, connections: number): Promise<string> {
    const disk = `nbd${this.#nbdDevices++}`;
    const several = connections > 1 ? `-C ${connections}` : '';
    await this.machine.check(
      `nbd-client -N ${exportName} ${host} ${port} /dev/${disk} -b 512 ${several} && blockdev --getsize64 /dev/${disk}`,
      { timeoutMs: ATTACH_MS_MAX },
    );
    return disk;
  }

  async #connectNvme({ host, port, exportName }: Target): Promise<string> {
    return this.#diskOf(`nvme-connect.sh ${host} ${port} ${exportName}`);
  }

  /** md's RAID1 over disks. */
  async #mirror(disks: readonly string[]): Promise<string> {
    return this.#diskOf(`mirror.sh ${MIRROR_NUMBER + this.#mirrors++} ${disks.join(' ')}`);
  }

  async #diskOf(script: string): Promise<string> {
    const output = await this.machine.check(`bash ${SCRIPTS}/${script}`, { timeoutMs: ATTACH_MS_MAX });
    const disk = /^disk (\S+)$/m.exec(output)?.[1];
    if (disk === undefined) throw new BlockwireError('BW_IO', `${script}: ${output.trim()}`);
    return disk;
  }

  async #competitor(name: string, device: Device): Promise<Competitor> {
    // The same scheduler for all: the requests reach the drivers as fio made them.
    await this.machine.check(
      'for f in /sys/block/{nbd,nvme,ublkb}*/queue/scheduler; do [ ! -w "$f" ] || echo none > "$f"; done',
      { timeoutMs: ATTACH_MS_MAX },
    );
    await this.#warmUp(device);
    let hung = false;
    return {
      name,
      measure: async (job) => {
        if (hung) throw new BlockwireError('BW_IO', 'not run: an earlier cell on this device hung');
        try {
          return await this.#measure(device, job);
        } catch (error) {
          hung = error instanceof BlockwireError && error.code === 'BW_TIMEOUT';
          throw error;
        }
      },
    };
  }

  /**
   * V8 compiles a data path while it runs, on threads that take CPU from the very machine that is measured, and what it
   * writes the emulator has to translate anew: let it finish first. The kernel's devices get a little of the same.
   */
  async #warmUp({ name, pid }: Device): Promise<void> {
    if (pid === 0) {
      for (const work of WARM_UP) await this.#carry(name, work, WARM_UP_KERNEL_S);
      return;
    }
    for (let round = 0; round < WARM_UP_ROUNDS_MAX; round++) {
      const beforeUs = await this.#compilerUs(pid);
      for (const work of WARM_UP) await this.#carry(name, work, WARM_UP_S);
      const compiledUs = (await this.#compilerUs(pid)) - beforeUs;
      if (compiledUs < COMPILING_SHARE_MAX * WARM_UP.length * WARM_UP_S * 1e6) return;
    }
  }

  /** Random reads and writes for a while. */
  async #carry(name: string, [blockKib, depth]: readonly [number, number], seconds: number): Promise<void> {
    const fio = [
      ...['fio', '--name=warm', `--filename=/dev/${name}`, '--ioengine=libaio', '--direct=1', '--thread'],
      ...['--rw=randrw', `--bs=${blockKib}k`, `--iodepth=${depth}`, '--norandommap', '--time_based'],
      `--runtime=${seconds}`,
    ];
    await this.machine.check(fio.join(' '), { timeoutMs: seconds * 1000 + CELL_SLACK_MS });
  }

  /** CPU time so far of the threads on which V8 compiles. */
  async #compilerUs(pid: number): Promise<number> {
    const stats = await this.machine.check(`cat /proc/${pid}/task/*/stat`, { timeoutMs: CELL_SLACK_MS });
    return threadsUs(stats, 'V8Worker');
  }

  async #measure(device: Device, job: Job): Promise<Metrics> {
    const { rampS, runtimeS } = this.#timing;
    for (const target of device.targets) target.check();
    const fio = fioArguments({
      job,
      target: { device: `/dev/${device.name}` },
      rampS,
      runtimeS,
      outputPath: `/tmp/cell-${this.#cells++}.json`,
    });
    const output = fio.find((argument) => argument.startsWith('--output='))!.slice('--output='.length);
    // The window ends well before fio does, also on a machine that is short of CPU.
    const windowS = runtimeS - WINDOW_MARGIN_S;
    const pids = [device.pid, ...device.targets.map(({ guestPid }) => guestPid)];
    const cell = this.machine.start(
      ['bash', CELL_SCRIPT, device.name, pids.join(','), rampS, windowS, output, 'fio', ...fio].join(' '),
      { timeoutMs: (rampS + runtimeS) * 1000 + CELL_SLACK_MS },
    );
    cell.end();
    // Also awaited below; a cell that ends early fails there.
    cell.done.catch(() => {});
    const ends = [];
    for (const mark of ['A', 'B'] as const) {
      const seen = await cell.waitFor(new RegExp(`^@${mark} end$`, 'm')).catch(() => null);
      if (seen === null) break;
      const outsideUs = device.targets.reduce((sum, { cpuUs }) => sum + (cpuUs?.() ?? 0), 0);
      const virtualUs = this.#qemuPid === 0 ? null : virtualCpuUs(this.#qemuPid);
      ends.push({ outsideUs, virtualUs, counters: await device.counters?.() });
    }
    const { exitCode, output: text, timedOut } = await cell.done;
    if (timedOut) throw new BlockwireError('BW_TIMEOUT', `${job.name} on ${device.name} hangs`);
    const [start, end] = ends;
    if (exitCode !== 0 || start === undefined || end === undefined) {
      throw new BlockwireError('BW_IO', `fio ended with exit code ${exitCode}: ${text.slice(-600).trim()}`);
    }
    const { iops, bytesPerSecond, p50Us, p99Us } = parseFio(text.slice(text.indexOf('@json') + 5), job.mode);
    const window = windowOf(text, job, pids.length);
    const { ios } = window;
    const [processUs = 0, ...serversUs] = window.processesUs;
    const insideUs = serversUs.reduce((sum, us) => sum + us, 0);
    const metrics = {
      ...{ iops, bytesPerSecond, p50Us, p99Us },
      guestCpuUs: window.guestUs / ios,
      guestCpuNsPerByte: (window.guestUs * 1000) / (ios * job.blockBytes),
      guestBusyShare: window.guestBusyShare,
      fioCpuUs: window.fioUs / ios,
      serverCpuUs: (insideUs + end.outsideUs - start.outsideUs) / ios,
      ...(start.virtualUs !== null && end.virtualUs !== null
        ? { virtualCpuUs: (end.virtualUs - start.virtualUs) / ios }
        : {}),
    };
    // The kernel's devices make no system calls for an I/O.
    if (start.counters === undefined || end.counters === undefined) return { ...metrics, entersPerIo: 0 };
    const [before, after] = [start.counters, end.counters];
    const agentIos =
      (after.readBytes + after.writeBytes - before.readBytes - before.writeBytes) / job.blockBytes;
    const zeroCopySends = after.zeroCopySends - before.zeroCopySends;
    return {
      ...metrics,
      agentCpuUs: processUs / ios,
      entersPerIo: (after.enters - before.enters) / agentIos,
      sqesPerIo: (after.sqes - before.sqes) / agentIos,
      ...(device.tellsCopies === true && zeroCopySends > 0
        ? { copiedShare: (after.zeroCopyCopied - before.zeroCopyCopied) / zeroCopySends }
        : {}),
    };
  }
}

/** What cell.sh saw between A and B. I/Os are counted by bytes, so that split or merged requests do not matter. */
function windowOf(text: string, job: Job, processCount: number) {
  const line = (mark: string, key: string): string =>
    new RegExp(`^@${mark} ${key} (.*)$`, 'm').exec(text)?.[1]?.trim() ?? '';
  const processUs = (key: string): number => {
    const [a, b] = [processTimes(line('A', key)), processTimes(line('B', key))];
    return a === null || b === null ? Number.NaN : b.ownUs - a.ownUs;
  };
  const sectors = (mark: string): number => {
    const fields = line(mark, 'disk').split(/\s+/).map(Number);
    return (fields[2] ?? Number.NaN) + (fields[6] ?? Number.NaN);
  };
  const ios = ((sectors('B') - sectors('A')) * SECTOR_BYTES) / job.blockBytes;
  const fioUs = processUs('fio');
  if (!(ios > 0) || Number.isNaN(fioUs)) {
    throw new BlockwireError('BW_IO', 'fio did no I/O in the window, or ended before it');
  }
  const cpu = (mark: string): string => line(mark, 'cpu');
  const guestUs = busyUs(cpu('B')) - busyUs(cpu('A'));
  const guestBusyShare = guestUs / (guestUs + idleUs(cpu('B')) - idleUs(cpu('A')));
  // A process that does not exist, or lives elsewhere, took nothing.
  const processesUs = Array.from({ length: processCount }, (_, i) => processUs(`process${i}`) || 0);
  return { ios, fioUs, processesUs, guestUs, guestBusyShare };
}

function readCounters(line: string): AgentCounters {
  const document: unknown = JSON.parse(line);
  const counters: unknown =
    typeof document === 'object' && document !== null ? Reflect.get(document, 'counters') : null;
  const at = (key: string): number => {
    const value: unknown =
      typeof counters === 'object' && counters !== null ? Reflect.get(counters, key) : null;
    if (typeof value !== 'number') throw new BlockwireError('BW_IO', `the agent counts no ${key}`);
    return value;
  };
  return {
    readBytes: at('readBytes'),
    writeBytes: at('writeBytes'),
    enters: at('enters'),
    sqes: at('sqes'),
    zeroCopySends: at('zeroCopySends'),
    zeroCopyCopied: at('zeroCopyCopied'),
  };
}

/** Hands lines of a process's output to whoever waits for one of a form. */
class LineWaiter {
  #rest = '';
  readonly #waiting: { pattern: RegExp; resolve: (line: string) => void }[] = [];

  add(chunk: Buffer): void {
    const lines = (this.#rest + chunk.toString()).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) {
      const index = this.#waiting.findIndex(({ pattern }) => pattern.test(line));
      if (index >= 0) this.#waiting.splice(index, 1)[0]!.resolve(line);
    }
  }

  next(pattern: RegExp): Promise<string> {
    return new Promise((resolve) => this.#waiting.push({ pattern, resolve }));
  }
}

/**
 * What a daemon's output says first in a pattern's group. Throws BW_TIMEOUT after its end, BW_IO with how it ended: a signal
 * leaves no words.
 */
async function firstWord(daemon: MachineProcess, pattern: RegExp): Promise<string> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    daemon.kill('SIGKILL');
    late.reject(new BlockwireError('BW_TIMEOUT', 'the device did not appear'));
  }, ATTACH_MS_MAX);
  const ended = async (): Promise<never> => {
    const { exitCode, output } = await daemon.done;
    throw new BlockwireError('BW_IO', `it ended with ${describeExit(exitCode)}; output: ${output.trim()}`);
  };
  try {
    const match = await Promise.race([daemon.waitFor(pattern).catch(ended), late.promise]);
    return match[1]!;
  } finally {
    clearTimeout(timer);
  }
}
