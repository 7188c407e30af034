/**
 * What a full rebuild takes from the I/O beside it, and whether it keeps its rate: `node test/bench/rebuild.ts`, about 2 minutes.
 *
 * Two nodes on this host. fio reads 4 KiB blocks from the replica that is the source, and writes 4 KiB blocks to the one that is
 * rebuilt, as the volume's writer does; first alone, then beside a rebuild of everything, at several rates. The rebuild is measured
 * over the same seconds as fio.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { addSession } from '@blockwire/shared/export-name.ts';
import { TestCluster, type TestNode } from '../../services/node/testing/cluster.ts';
import { fioArguments, type Job, job, parseFio } from './fio.ts';
import { type Daemon, startDaemon } from './processes.ts';
import { formatNumber, renderTable } from './table.ts';

const MIB = 2 ** 20;
const SIZE_BYTES = 4096 * MIB;
const RAMP_S = 2;
const RUNTIME_S = 8;
const SLACK_MS = 30_000;
const GENERATION = 2;
const READS = job('read', 4, 16);
const WRITES = job('write', 4, 16);

interface Case {
  readonly name: string;
  readonly hasForeground: boolean;
  /** Null: no rebuild; 0: without a limit. */
  readonly bytesPerSecond: number | null;
}

const CASES: readonly Case[] = [
  { name: 'no rebuild', hasForeground: true, bytesPerSecond: null },
  { name: 'at most 16 MiB/s', hasForeground: true, bytesPerSecond: 16 * MIB },
  { name: 'at most 64 MiB/s', hasForeground: true, bytesPerSecond: 64 * MIB },
  { name: 'no limit', hasForeground: true, bytesPerSecond: 0 },
  { name: 'no rebuild', hasForeground: true, bytesPerSecond: null },
  { name: 'at most 64 MiB/s, nothing beside it', hasForeground: false, bytesPerSecond: 64 * MIB },
  { name: 'no limit, nothing beside it', hasForeground: false, bytesPerSecond: 0 },
];

class Bench {
  readonly #cluster: TestCluster;
  readonly #source: TestNode;
  readonly #target: TestNode;
  readonly #directory: string;
  #epoch = 2;

  constructor(cluster: TestCluster, nodes: readonly [TestNode, TestNode], directory: string) {
    this.#cluster = cluster;
    [this.#source, this.#target] = nodes;
    this.#directory = directory;
  }

  /** A row of the table. */
  async measure({ name, hasForeground, bytesPerSecond }: Case): Promise<string[]> {
    const epoch = ++this.#epoch;
    assert.equal(await this.#source.install(GENERATION, epoch), '');
    assert.equal(await this.#target.install(GENERATION, epoch, bytesPerSecond === null ? null : epoch), '');
    const fios = hasForeground
      ? [this.#fio(this.#source, READS, epoch), this.#fio(this.#target, WRITES, epoch)]
      : [];
    if (bytesPerSecond !== null) {
      const order = this.#source.order(GENERATION, epoch);
      const rebuild = { order, sinceEpoch: 0, joinedEpoch: epoch, bytesPerSecond };
      assert.equal(await this.#cluster.command(this.#target, { rebuild }), '');
    }
    await sleep(RAMP_S * 1000);
    const [startMs, before] = [performance.now(), await this.#target.receivedBytes()];
    const isOver = (): boolean =>
      this.#cluster.control.rebuilds.some(({ joinedEpoch }) => joinedEpoch === epoch);
    while (!isOver() && performance.now() < startMs + RUNTIME_S * 1000) await sleep(20);
    const [endMs, after] = [performance.now(), await this.#target.receivedBytes()];
    const results = [];
    for (const { daemon, outputPath, work } of fios) {
      assert.equal(await daemon.wait(RUNTIME_S * 1000 + SLACK_MS), 0, daemon.output());
      results.push(parseFio(readFileSync(outputPath, 'utf8'), work.mode));
    }
    const [reads, writes] = results;
    const rate = ((after - before) / MIB / (endMs - startMs)) * 1000;
    return [
      name,
      ...[reads?.iops, reads?.p99Us, writes?.iops, writes?.p99Us].map(formatNumber),
      bytesPerSecond === null ? '-' : `${formatNumber(rate)}${isOver() ? ' (it ended)' : ''}`,
    ];
  }

  #fio(node: TestNode, work: Job, epoch: number): { daemon: Daemon; outputPath: string; work: Job } {
    const session = { epoch, link: `bench/${node.id}/0`, attempt: epoch };
    const name = addSession(this.#cluster.name('writer', GENERATION), session);
    const outputPath = join(this.#directory, `${node.id}-${epoch}.json`);
    const target = { uri: `nbd://${node.nbd}/${encodeURIComponent(name)}` };
    const args = fioArguments({ job: work, target, rampS: RAMP_S, runtimeS: RUNTIME_S, outputPath });
    return { daemon: startDaemon(['fio', ...args], { netns: null }), outputPath, work };
  }
}

test('rebuilds beside other I/O', { timeout: 600_000 }, async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'blockwire-bench-rebuild-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const cluster = await TestCluster.start(t);
  const nodes = [await cluster.node('source'), await cluster.node('target')] as const;
  for (const node of nodes) {
    assert.equal(await node.create(SIZE_BYTES, 1, 1), '');
    assert.equal(await node.install(GENERATION, 2), '');
  }
  const writer = await nodes[0].open('writer', GENERATION, 2);
  const content = randomBytes(MIB);
  for (let at = 0; at < SIZE_BYTES; at += MIB) assert.equal(await writer.write(at, content), 0);
  writer.close();
  const bench = new Bench(cluster, nodes, directory);
  const rows: string[][] = [];
  for (const each of CASES) rows.push(await bench.measure(each));
  const titles = ['rebuild', 'reads IOPS', 'p99 us', 'writes IOPS', 'p99 us', 'rebuild MiB/s'];
  const columns = titles.map((title, index) => ({ title, align: index === 0 ? 'left' : 'right' }) as const);
  process.stdout.write(`\n${renderTable(columns, rows)}\n\n`);
});
