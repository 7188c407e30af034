/**
 * Every datapath and every rung of its ladder against a neutral server, with several queues and mirrors, in one machine: what is
 * written is read back, and all replicas hold the same bytes. BLOCKWIRE_DATAPATH_SWEEP=1 tries every combination.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { native } from '@blockwire/native/native.ts';
import { listenTcp } from '@blockwire/native/sockets.ts';
import type { Machine, MachineProcess } from '../vm/machine.ts';
import { Vm } from '../vm/vm.ts';
import { fioVerify, MIB } from './world.ts';

const SIZE_BYTES = 64 * MIB;
const MIRRORS_MAX = 3;
const CPUS = 4;
const ATTACH_MS_MAX = 90_000;
const SHELL_MS_MAX = 4 * 60_000;
const SWEEP = process.env.BLOCKWIRE_DATAPATH_SWEEP === '1';

interface Case {
  readonly name: string;
  readonly arguments: string;
  readonly queues: number;
  readonly mirrors: number;
  /** Counters that must have moved. */
  readonly moved?: readonly string[];
}

const MODES: readonly Omit<Case, 'queues' | 'mirrors'>[] = [
  { name: 'fused', arguments: '--datapath fused --zero-copy-min 32768', moved: ['zeroCopySends'] },
  {
    name: 'fused with SEND, READ_FIXED and buffers registered by hand',
    arguments: '--datapath fused --send plain --receive readFixed --buffers manual',
  },
  {
    name: 'fused with everything in registered pages by SEND_ZC',
    arguments: '--datapath fused --small 0 --send zc --zero-copy-min 0',
    moved: ['zeroCopySends'],
  },
  { name: 'splice', arguments: '--datapath splice', moved: ['zeroCopySends'] },
  { name: 'copy', arguments: '--datapath copy' },
];

const CASES: readonly Case[] = SWEEP
  ? MODES.flatMap((mode) =>
      [1, CPUS].flatMap((queues) => [1, 2, MIRRORS_MAX].map((mirrors) => ({ ...mode, queues, mirrors }))),
    )
  : [
      { ...MODES[0]!, queues: CPUS, mirrors: 3 },
      { ...MODES[0]!, queues: 1, mirrors: 1 },
      { ...MODES[1]!, queues: 1, mirrors: 2 },
      { ...MODES[2]!, queues: 1, mirrors: 2 },
      { ...MODES[3]!, queues: CPUS, mirrors: 2 },
      { ...MODES[4]!, queues: CPUS, mirrors: 2 },
    ];

/** nbdkit over a file of this host. */
class Server {
  readonly #path: string;
  readonly #child: ChildProcess;
  readonly port: number;

  constructor(path: string) {
    this.#path = path;
    writeFileSync(path, '');
    truncateSync(path, SIZE_BYTES);
    const { fd, port } = listenTcp({ address: '127.0.0.1', port: 0 }, 1);
    native.close(fd);
    this.port = port;
    this.#child = spawn('nbdkit', ['-f', '-i', '127.0.0.1', '-p', String(port), 'file', path], {
      stdio: 'ignore',
    });
  }

  async digest(): Promise<string> {
    return createHash('sha256')
      .update(await readFile(this.#path))
      .digest('hex');
  }

  async close(): Promise<void> {
    // It would wait for connections of a machine that is gone.
    this.#child.kill('SIGKILL');
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, 'exit');
  }
}

class Attached {
  readonly path: string;
  readonly #process: MachineProcess;

  private constructor(path: string, process: MachineProcess) {
    this.path = path;
    this.#process = process;
  }

  static async start(machine: Machine, servers: readonly Server[], options: string): Promise<Attached> {
    const replicas = servers.map(({ port }) => `--replica ${machine.hostAddress}:${port}/`).join(' ');
    const command = `exec node test/tools/attach.ts --size ${SIZE_BYTES} ${options} ${replicas}`;
    const started = machine.start(command, { timeoutMs: 10 * 60_000 });
    const found = await Promise.race([
      started.waitFor(/^(\/dev\/ublkb\d+)$/m),
      sleep(ATTACH_MS_MAX, null, { ref: false }),
    ]);
    assert.ok(found !== null, `no device within ${ATTACH_MS_MAX} ms: ${options}`);
    return new Attached(found[1]!, started);
  }

  async counters(): Promise<Record<string, number>> {
    this.#process.write('counters\n');
    const line = await this.#process.waitFor(/^\{"counters":(\{[^}]*\})/m);
    return JSON.parse(line[1]!) as Record<string, number>;
  }

  /** Ends the program, which removes the device. */
  async detach(): Promise<void> {
    this.#process.kill('SIGTERM');
    const { exitCode, output } = await this.#process.done;
    assert.equal(exitCode, 0, output);
  }
}

describe('data paths', () => {
  let machine: Machine;
  let directory: string;
  let servers: Server[] = [];
  const shell = (command: string): Promise<string> => machine.check(command, { timeoutMs: SHELL_MS_MAX });

  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'blockwire-datapath-'));
    servers = Array.from({ length: MIRRORS_MAX }, (_, index) => new Server(join(directory, String(index))));
    machine = await Vm.boot({ cpus: CPUS, memoryMiB: 2048 });
  });
  after(async () => {
    await machine?.close();
    for (const server of servers) await server.close();
    rmSync(directory, { recursive: true, force: true });
  });

  for (const { name, arguments: options, queues, mirrors, moved = [] } of CASES) {
    it(`${name}, ${queues} queues, ${mirrors} mirrors: verified, replicas identical`, async () => {
      const mirrored = servers.slice(0, mirrors);
      const attached = await Attached.start(machine, mirrored, `${options} --queues ${queues}`);
      const { path } = attached;
      const found = await shell(`ls /sys/block/${path.slice(5)}/mq | wc -l`);
      assert.equal(Number(found), queues);
      await shell(`${fioVerify(path, { sizeBytes: 5 * MIB })} --numjobs=2 --offset_increment=16m`);
      // From every CPU, so from every queue, onto the same blocks: replicas that applied them in different order would differ.
      await shell(
        `fio --name=overlap --filename=${path} --rw=randwrite --bsrange=4k-64k --norandommap --offset=40m --size=512k ` +
          '--io_size=1m --direct=1 --ioengine=libaio --iodepth=16 --refill_buffers --numjobs=4 --group_reporting ' +
          '--cpus_allowed=0-3 --cpus_allowed_policy=split',
      );
      const counters = await attached.counters();
      assert.equal(counters.errors, 0);
      assert.equal(counters.inFlight, 0);
      assert.ok(counters.overlaps! > 0, 'no write had to wait for another');
      for (const counter of moved) assert.ok(counters[counter]! > 0, `${counter} is ${counters[counter]}`);
      await attached.detach();
      await shell(`test ! -e ${path}`);
      const digests = await Promise.all(mirrored.map((server) => server.digest()));
      assert.deepEqual(
        digests,
        digests.map(() => digests[0]),
      );
    });
  }

  it('limits are those of the device; discard, write zeroes, flush and FUA arrive', async () => {
    const attached = await Attached.start(
      machine,
      servers.slice(0, 2),
      '--datapath fused --depth 4096 --io-size 4194304 --block-size 4096',
    );
    const { path } = attached;
    const queue = `/sys/block/${path.slice(5)}/queue`;
    const limits = await shell(
      `cd ${queue}; for f in logical_block_size physical_block_size max_hw_sectors_kb discard_granularity write_cache fua; do echo $f $(cat $f); done; lsblk -tn ${path}`,
    );
    assert.match(limits, /^logical_block_size 4096$/m);
    assert.match(limits, /^physical_block_size 4096$/m);
    assert.match(limits, /^max_hw_sectors_kb 4096$/m);
    assert.match(limits, /^discard_granularity 4096$/m);
    assert.match(limits, /^write_cache write back$/m);
    assert.match(limits, /^fua 1$/m);
    // One I/O as large as the device takes: the block layer's own limit is lower by default.
    await shell(`echo 4096 > ${queue}/max_sectors_kb`);
    await shell(
      `dd if=/dev/urandom of=/tmp/data bs=4M count=2 && dd if=/tmp/data of=${path} bs=4M oflag=direct conv=fsync`,
    );
    await shell(`dd if=${path} of=/tmp/back bs=4M count=2 iflag=direct && cmp /tmp/data /tmp/back`);
    await shell(`blkdiscard --offset 0 --length 1048576 ${path}`);
    await shell(`blkdiscard --zeroout --offset 4194304 --length 1048576 ${path}`);
    await shell(`cmp --bytes=1048576 --ignore-initial=4194304:0 ${path} /dev/zero`);
    // Deeper than one chain, from a queue that is 4096 deep.
    await shell(
      `fio --name=deep --filename=${path} --rw=randwrite --bs=4k --offset=16m --size=8m --direct=1 --ioengine=libaio ` +
        '--iodepth=1024 --iodepth_batch=256 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0',
    );
    await shell(`dd if=/dev/urandom of=${path} bs=64k count=4 oflag=direct,dsync`);
    const counters = await attached.counters();
    assert.equal(counters.errors, 0);
    for (const counter of ['flushOps', 'trimOps']) assert.ok(counters[counter]! > 0, counter);
    await attached.detach();
    const [first, second] = await Promise.all(servers.slice(0, 2).map((server) => server.digest()));
    assert.equal(first, second);
  });

  it('one request at a time is polled for, if that is wanted', async () => {
    for (const busyPollUs of [10_000, 0]) {
      const attached = await Attached.start(machine, servers.slice(0, 1), `--busy-poll ${busyPollUs}`);
      const { path } = attached;
      await shell(
        `fio --name=alone --filename=${path} --rw=randwrite --bs=4k --size=4m --direct=1 --ioengine=psync ` +
          '--verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0',
      );
      const { errors, readOps, writeOps, polls, pollHits, enters } = await attached.counters();
      assert.equal(errors, 0);
      const ops = readOps! + writeOps!;
      const said = `${pollHits} hits of ${polls} polls, ${enters} enters, ${ops} requests`;
      // Two waits a request, for the replica and for the next one. One that polls enters twice, to submit and to fetch.
      if (busyPollUs > 0) assert.ok(pollHits! > ops && enters! > 3 * ops, said);
      else assert.ok(polls === 0 && enters! < 3 * ops, said);
      await attached.detach();
    }
  });

  it('a read-only device is read and refuses writes', async () => {
    const attached = await Attached.start(machine, servers.slice(0, 1), '--read-only');
    const { path } = attached;
    assert.equal((await shell(`blockdev --getro ${path}`)).trim(), '1');
    await shell(`dd if=${path} of=/dev/null bs=1M count=4 iflag=direct`);
    const { exitCode } = await machine.run(`dd if=/dev/zero of=${path} bs=4k count=1 oflag=direct`);
    assert.notEqual(exitCode, 0);
    await attached.detach();
  });

  it('what the kernel offers is told, and what it does not is refused', async () => {
    const report = JSON.parse(await shell('node agent/doctor.ts')) as {
      datapath: {
        auto: string;
        modes: { mode: string; available: boolean }[];
        rungs: { rung: string; available: boolean; reason: string }[];
      };
    };
    assert.equal(report.datapath.auto, 'fused');
    assert.ok(report.datapath.modes.every(({ available }) => available));
    for (const { rung, available, reason } of report.datapath.rungs)
      assert.ok(available, `${rung}: ${reason}`);
    const refused = await machine.run(
      `node test/tools/attach.ts --size ${SIZE_BYTES} --datapath warp --replica 127.0.0.1:1/`,
    );
    assert.notEqual(refused.exitCode, 0);
    assert.match(refused.output, /datapath 'warp' is none of/);
  });
});
