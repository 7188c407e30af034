import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ByteRange } from '../replication/fresh.ts';
import { Scrub, type ScrubHost } from './scrub.ts';

const MIB = 2 ** 20;
const SIZE = 2 * MIB + 4096;

/** Two replicas in memory; `beside` happens at each pause. */
class Replicas implements ScrubHost {
  readonly local = Buffer.alloc(SIZE, 1);
  readonly source = Buffer.alloc(SIZE, 1);
  /** Blocks that do not match their checksums. */
  readonly bad = new Set<number>();
  readonly badAtSource = new Set<number>();
  readonly repairs: number[] = [];
  pausedMs = 0;
  beside: () => void = () => undefined;

  async readLocal({ offset, length }: ByteRange, into: Uint8Array): Promise<boolean> {
    into.set(this.local.subarray(offset, offset + length));
    return ![...this.bad].some((block) => block * 4096 >= offset && block * 4096 < offset + length);
  }

  async readSource({ offset, length }: ByteRange, into: Uint8Array): Promise<boolean> {
    into.set(this.source.subarray(offset, offset + length));
    return ![...this.badAtSource].some((block) => block * 4096 >= offset && block * 4096 < offset + length);
  }

  async repair(region: number): Promise<boolean> {
    this.repairs.push(region);
    for (const block of this.bad) {
      if (Math.floor((block * 4096) / MIB) !== region) continue;
      this.source.copy(this.local, block * 4096, block * 4096, (block + 1) * 4096);
      this.bad.delete(block);
    }
    return true;
  }

  async pause(milliseconds: number): Promise<void> {
    this.pausedMs += milliseconds;
    this.beside();
  }

  async scrub(bytesPerSecond = 0) {
    const scrub = new Scrub({ sizeBytes: SIZE, bytesPerSecond, host: this });
    await scrub.run([0, 1, 2]);
    const { scannedBytes, mismatched, repaired, differing } = scrub.outcome;
    return { scannedBytes, mismatched: [...mismatched], repaired: [...repaired], differing: [...differing] };
  }
}

test('equal replicas: everything is looked at once, at the rate', async () => {
  const replicas = new Replicas();
  assert.deepEqual(await replicas.scrub(MIB), {
    ...{ scannedBytes: SIZE, mismatched: [], repaired: [], differing: [] },
  });
  assert.equal(Math.round(replicas.pausedMs), Math.round((SIZE / MIB) * 1000));
});

test('a wrong checksum is repaired from the source', async () => {
  const replicas = new Replicas();
  replicas.local.fill(9, MIB + 8192, MIB + 8192 + 4096);
  replicas.bad.add((MIB + 8192) / 4096);
  const { mismatched, repaired, differing } = await replicas.scrub();
  assert.deepEqual([mismatched, repaired, differing], [[1], [1], []]);
  assert.ok(replicas.local.equals(replicas.source));
});

test('a wrong checksum stays where the source cannot read either', async () => {
  const replicas = new Replicas();
  replicas.bad.add(1);
  replicas.badAtSource.add(1);
  const { mismatched, repaired } = await replicas.scrub();
  assert.deepEqual([mismatched, repaired, replicas.repairs], [[0], [], []]);
});

test('content that differs for good, with good checksums, is said and left alone', async () => {
  const replicas = new Replicas();
  replicas.local.fill(9, SIZE - 4096);
  const { mismatched, repaired, differing } = await replicas.scrub();
  assert.deepEqual([mismatched, repaired, differing], [[2], [], [2]]);
  assert.equal(replicas.local[SIZE - 1], 9);
});

test('a write that has come to one side so far is no difference', async () => {
  const replicas = new Replicas();
  replicas.source.fill(9, 0, 4096);
  replicas.beside = () => void replicas.local.fill(9, 0, 4096);
  assert.deepEqual((await replicas.scrub()).mismatched, []);
});

test('a block that changes all the time is no difference, one beside it that never does is', async () => {
  const replicas = new Replicas();
  let value = 10;
  replicas.beside = () => {
    replicas.source.fill(++value, 0, 4096);
    replicas.local.fill(value - 1, 0, 4096);
  };
  replicas.beside();
  assert.deepEqual((await replicas.scrub()).mismatched, []);
  replicas.local.fill(99, 4096, 8192);
  assert.deepEqual((await replicas.scrub()).differing, [0]);
});
