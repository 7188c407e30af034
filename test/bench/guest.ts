/**
 * The machine with ublk, and what is attached there: our devices, the kernel's nbd client. One cell is one fio run on one of
 * them, with the CPU time of the guest and of the servers outside during the same window.
 */
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Machine, MachineProcess } from '../vm/machine.ts';
import { Vm } from '../vm/vm.ts';
import { busyUs, idleUs, processTimes, processTreeUs } from './cpu.ts';
import { fioArguments, type Job, parseFio } from './fio.ts';
import { type Cleanup, describeExit } from './processes.ts';
import type { Competitor, Metrics } from './rounds.ts';
import type { NbdServer } from './servers.ts';

const SECTOR_BYTES = 512;
/** Beyond fio's own time: start of the programs, an emulated machine. */
const CELL_SLACK_MS = 45_000;
const WINDOW_MARGIN_S = 1;
const ATTACH_MS_MAX = 90_000;
/** Block size in KiB, depth, seconds. */
const WARM_UP = [
  [4, 32, 10],
  [512, 8, 3],
] as const;
const CELL_SOURCE = join(import.meta.dirname, 'guest/cell.sh');
const CELL_SCRIPT = '/tmp/cell.sh';
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
}

interface Device {
  /** As in /sys/block. */
  readonly name: string;
  /** Of the process that serves it; 0 for devices of the kernel's own. */
  readonly pid: number;
  readonly servers: readonly NbdServer[];
  readonly counters: (() => Promise<AgentCounters>) | null;
}

export class Guest {
  readonly machine: Machine;
  readonly #timing: Timing;
  #nbdDevices = 0;
  #cells = 0;

  private constructor(machine: Machine, timing: Timing) {
    this.machine = machine;
    this.#timing = timing;
  }

  static async boot(options: {
    network: 'tap' | 'slirp';
    timing: Timing;
    cleanup: Cleanup;
    onProgress: (message: string) => void;
  }): Promise<Guest> {
    const machine = await Vm.boot({ network: options.network, onProgress: options.onProgress });
    options.cleanup.add(() => machine.close());
    await machine.check('modprobe nbd max_part=0 nbds_max=8', { timeoutMs: ATTACH_MS_MAX });
    // A copy: the original is on a file system that changes when somebody edits it meanwhile.
    await machine.check(`cp ${CELL_SOURCE} ${CELL_SCRIPT}`, { timeoutMs: ATTACH_MS_MAX });
    return new Guest(machine, options.timing);
  }

  /** Our device over one or more servers. Throws with what the program said. */
  async attachOurs(
    name: string,
    options: { datapath: string; sizeBytes: number; servers: readonly NbdServer[] },
  ): Promise<Competitor> {
    const replicas = options.servers.map(
      (server) => `--replica ${this.#address(server)}/${server.exportName}`,
    );
    const lines = new LineWaiter();
    const attached = this.machine.start(
      `echo "pid $$"; exec node ${ATTACH_PROGRAM} --size ${options.sizeBytes} --datapath ${options.datapath} ${replicas.join(' ')}`,
      { onOutput: (chunk) => lines.add(chunk) },
    );
    const pid = Number(await firstWord(attached, /^pid (\d+)$/m));
    const device = await firstWord(attached, /^\/dev\/(ublkb\d+)$/m);
    return this.#competitor(name, {
      name: device,
      pid,
      servers: options.servers,
      counters: async () => {
        const answer = lines.next(/^\{"counters":/);
        attached.write('counters\n');
        return readCounters(await answer);
      },
    });
  }

  /** The kernel's nbd client. */
  async attachKernelNbd(
    name: string,
    options: { server: NbdServer; connections: number },
  ): Promise<Competitor> {
    const { server, connections } = options;
    const [host, port] = [this.#host(server), server.port];
    const device = `nbd${this.#nbdDevices++}`;
    const several = connections > 1 ? `-C ${connections}` : '';
    await this.machine.check(
      `nbd-client -N ${server.exportName} ${host} ${port} /dev/${device} -b 512 ${several} && blockdev --getsize64 /dev/${device}`,
      { timeoutMs: ATTACH_MS_MAX },
    );
    return this.#competitor(name, { name: device, pid: 0, servers: [server], counters: null });
  }

  #host(server: NbdServer): string {
    return this.machine.hostNetns === null ? this.machine.hostAddress : server.host;
  }

  #address(server: NbdServer): string {
    return `${this.#host(server)}:${server.port}`;
  }

  async #competitor(name: string, device: Device): Promise<Competitor> {
    // The same scheduler for all: the requests reach the drivers as fio made them.
    await this.machine.check(`echo none > /sys/block/${device.name}/queue/scheduler`, {
      timeoutMs: ATTACH_MS_MAX,
    });
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
   * V8 compiles a data path while it runs, on threads that take CPU from the very machine that is measured: let it finish
   * first. The kernel's client gets the same, for its connections' sake.
   */
  async #warmUp({ name }: Device): Promise<void> {
    for (const [blockKib, depth, seconds] of WARM_UP) {
      const fio = [
        ...['fio', '--name=warm', `--filename=/dev/${name}`, '--ioengine=libaio', '--direct=1', '--thread'],
        ...['--rw=randrw', `--bs=${blockKib}k`, `--iodepth=${depth}`, '--norandommap', '--time_based'],
        `--runtime=${seconds}`,
      ];
      await this.machine.check(fio.join(' '), { timeoutMs: seconds * 1000 + CELL_SLACK_MS });
    }
  }

  async #measure(device: Device, job: Job): Promise<Metrics> {
    const { rampS, runtimeS } = this.#timing;
    for (const server of device.servers) server.check();
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
    const cell = this.machine.start(
      ['bash', CELL_SCRIPT, device.name, device.pid, rampS, windowS, output, 'fio', ...fio].join(' '),
      { timeoutMs: (rampS + runtimeS) * 1000 + CELL_SLACK_MS },
    );
    cell.end();
    // Also awaited below; a cell that ends early fails there.
    cell.done.catch(() => {});
    const ends = [];
    for (const mark of ['A', 'B'] as const) {
      const seen = await cell.waitFor(new RegExp(`^@${mark} end$`, 'm')).catch(() => null);
      if (seen === null) break;
      const serverUs = device.servers.reduce((sum, { pid }) => sum + processTreeUs(pid), 0);
      ends.push({ serverUs, counters: await device.counters?.() });
    }
    const { exitCode, output: text, timedOut } = await cell.done;
    if (timedOut) throw new BlockwireError('BW_TIMEOUT', `${job.name} on ${device.name} hangs`);
    const [start, end] = ends;
    if (exitCode !== 0 || start === undefined || end === undefined) {
      throw new BlockwireError('BW_IO', `fio ended with exit code ${exitCode}: ${text.slice(-600).trim()}`);
    }
    const { iops, bytesPerSecond, p50Us, p99Us } = parseFio(text.slice(text.indexOf('@json') + 5), job.mode);
    const window = windowOf(text, job);
    const metrics = {
      ...{ iops, bytesPerSecond, p50Us, p99Us },
      guestCpuUs: window.guestUs / window.ios,
      guestBusyShare: window.guestBusyShare,
      fioCpuUs: window.fioUs / window.ios,
      serverCpuUs: (end.serverUs - start.serverUs) / window.ios,
    };
    if (start.counters === undefined || end.counters === undefined) return metrics;
    const agentIos =
      (end.counters.readBytes +
        end.counters.writeBytes -
        start.counters.readBytes -
        start.counters.writeBytes) /
      job.blockBytes;
    return {
      ...metrics,
      agentCpuUs: window.processUs / window.ios,
      entersPerIo: (end.counters.enters - start.counters.enters) / agentIos,
      sqesPerIo: (end.counters.sqes - start.counters.sqes) / agentIos,
    };
  }
}

/** What cell.sh saw between A and B. I/Os are counted by bytes, so that split or merged requests do not matter. */
function windowOf(text: string, job: Job) {
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
  return { ios, fioUs, processUs: processUs('process'), guestUs, guestBusyShare };
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
