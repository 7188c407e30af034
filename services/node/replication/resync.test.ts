import assert from 'node:assert/strict';
import { test } from 'node:test';
import { REGION_DIRTY, REGION_INTENT, REGION_SIZE_BYTES, RegionTable } from '../store/region-table.ts';
import { FreshMap } from './fresh.ts';
import { planRebuild, planReconcile, Resync, type ResyncHost } from './resync.ts';

const HALF = REGION_SIZE_BYTES / 2;

class Host implements ResyncHost {
  readonly reads: string[] = [];
  readonly writes: string[] = [];
  readonly acquired: number[] = [];
  flushCount = 0;
  result: string | null | undefined;

  read(slot: number, offset: number, length: number): void {
    this.reads.push(`${slot}: ${offset / HALF} ${length / HALF}`);
  }
  acquire(slot: number): void {
    this.acquired.push(slot);
  }
  write(slot: number, parts: readonly { offset: number; length: number }[]): void {
    this.writes.push(`${slot}: ${parts.map(({ offset, length }) => `${offset}+${length}`).join(' ')}`);
  }
  flush(): void {
    this.flushCount++;
  }
  ended(error: string | null): void {
    assert.equal(this.result, undefined, 'it ends once');
    this.result = error;
  }
}

function resync(regions: number[], fresh: FreshMap | null = null): { host: Host; job: Resync } {
  const host = new Host();
  const sizeBytes = 2.5 * REGION_SIZE_BYTES;
  const job = new Resync({ regions, sizeBytes, chunkBytes: HALF, parallel: 2, fresh, host });
  job.start();
  return { host, job };
}

test('a rebuild copies what the source wrote, its own intents, and what it has written itself since', () => {
  const own = new RegionTable(8 * REGION_SIZE_BYTES, null);
  own.set(1, 2, REGION_DIRTY | REGION_INTENT);
  own.set(2, 6, REGION_DIRTY);
  own.set(3, 4, REGION_DIRTY);
  assert.deepEqual(planRebuild(own, [7, 0], 5), [0, 1, 2, 7]);
  assert.deepEqual(planReconcile(own, [3]), [1, 3]);
});

test('chunks are read in parallel up to the limit, to the end of the volume, then flushed', () => {
  const { host, job } = resync([0, 2]);
  assert.deepEqual(host.reads, ['0: 0 1', '1: 1 1']);
  for (const slot of [1, 0]) {
    job.readDone(slot, null);
    job.granted(slot);
    assert.equal(host.flushCount, 0);
    job.written(slot, null);
  }
  assert.deepEqual(host.reads.slice(2), ['1: 4 1']);
  job.readDone(1, null);
  job.granted(1);
  job.written(1, null);
  assert.equal(host.flushCount, 1);
  assert.equal(host.result, undefined);
  job.flushed(null);
  assert.equal(host.result, null);
});

test('nothing to copy is done after a flush', () => {
  const { host, job } = resync([]);
  assert.equal(host.flushCount, 1);
  job.flushed('no space');
  assert.equal(host.result, 'no space');
});

test('what the writer writes between reading and writing is not overwritten', () => {
  const fresh = new FreshMap();
  const { host, job } = resync([0], fresh);
  job.readDone(0, null);
  fresh.add(0, 4096);
  job.granted(0);
  assert.deepEqual(host.writes, [`0: 4096+${HALF - 4096}`]);
});

test('a failure ends it once; ranges that were asked for are still given back', () => {
  const { host, job } = resync([0]);
  job.readDone(0, null);
  job.readDone(1, 'the source is gone');
  assert.equal(host.result, 'the source is gone');
  job.granted(0);
  assert.deepEqual(host.writes, ['0: ']);
  job.written(0, null);
  job.cancel('again');
  assert.equal(host.flushCount, 0);
});
