/** A rebuild between real processes keeps to its rate. What it takes from the I/O beside it: test/bench/rebuild.ts. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Mirror, TestCluster } from './testing/cluster.ts';

const MIB = 2 ** 20;
const CONTENT_BYTES = 40 * MIB;
const RATE = 8 * MIB;
/** What is allowed after a pause, the chunks under way, what is written by the writer and asked for all the same. */
const BURST_BYTES = 3 * MIB;
/** The node counts in ticks of its own. */
const CLOCKS = 1.25;

test('a rebuild keeps its rate, at every moment and on the whole, beside a writer', async (t) => {
  const cluster = await TestCluster.start(t);
  const [a, c] = [await cluster.node('node-a'), await cluster.node('node-c')];
  assert.equal(await a.create(CONTENT_BYTES, 2, 2), '');
  const first = new Mirror([await a.open('writer', 2, 2)], Buffer.alloc(CONTENT_BYTES));
  for (let at = 0; at < CONTENT_BYTES; at += MIB) await first.write(at, randomBytes(MIB));
  first.close();
  assert.equal(await c.create(CONTENT_BYTES, 2, 2), '');
  assert.equal(await a.install(2, 3), '');
  assert.equal(await c.install(2, 3, 3), '');
  const writer = new Mirror([await a.open('writer', 2, 3), await c.open('writer', 2, 3)], first.expected);

  const startMs = performance.now();
  const rebuild = { order: a.order(2, 3), sinceEpoch: 0, joinedEpoch: 3, bytesPerSecond: RATE };
  assert.equal(await cluster.command(c, { rebuild }), '');
  const secondsSince = (): number => (performance.now() - startMs) / 1000;
  const isOver = (): boolean => cluster.control.rebuilds.some(({ joinedEpoch }) => joinedEpoch === 3);
  let looks = 0;
  for (; !isOver(); looks++) {
    const received = await c.receivedBytes();
    const seconds = secondsSince();
    assert.ok(received <= CLOCKS * RATE * seconds + BURST_BYTES, `${received} bytes after ${seconds} s`);
    await writer.write(((looks * 7) % 40) * MIB, randomBytes(4096));
    await sleep(25);
  }
  const seconds = secondsSince();
  assert.equal(await cluster.rebuilt(3), '');
  assert.ok(looks > 10, `${looks} looks`);
  const bestSeconds = CONTENT_BYTES / RATE;
  // A bound, and what there is to be had.
  assert.ok(seconds > bestSeconds / CLOCKS - BURST_BYTES / RATE && seconds < 5 * bestSeconds, `${seconds} s`);
  assert.equal(await c.install(2, 4), '');
  assert.ok((await c.content(2, CONTENT_BYTES)).equals(writer.expected));
  writer.close();
});
