import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VolumeRecord } from './records.ts';
import { beginScrub, isScrubDue, recordScrub, runningScrub } from './scrub-state.ts';
import { markStale, newVolume } from './volume-state.ts';

const HOUR_MS = 3_600_000;
const CREATED = '2030-01-01T00:00:00.000Z';
const createdMs = Date.parse(CREATED);
const at = (hours: number): string => new Date(createdMs + hours * HOUR_MS).toISOString();
const volume: VolumeRecord = {
  ...newVolume({
    ...{
      id: 'vol-000000000001',
      name: 'a',
      sizeBytes: 4096,
      nodeIds: ['n1', 'n2', 'n3'],
      createdAt: CREATED,
    },
  }),
  state: 'available',
};
const isDue = (record: VolumeRecord, hours: number): boolean =>
  isScrubDue(record, { nowMs: createdMs + hours * HOUR_MS, intervalMs: 10 * HOUR_MS });
const report = (nodeId: string, error: string | null = null) => ({
  ...{ nodeId, volumeId: volume.id, scannedBytes: 9, mismatchedRegions: 2, repairedRegions: 1, error },
});
const begun = beginScrub(volume, { startedAt: at(10), isOnline: () => true });

test('each replica in sync and online is compared with another one', () => {
  const pairs = runningScrub(begun)?.replicas.map(({ nodeId, sourceNodeId }) => [nodeId, sourceNodeId]);
  assert.deepEqual(pairs, [
    ['n1', 'n2'],
    ['n2', 'n3'],
    ['n3', 'n1'],
  ]); // prettier-ignore
  assert.equal(begun.epoch, volume.epoch);
  const degraded = markStale(volume, ['n1'])!;
  const two = beginScrub(degraded, { startedAt: at(10), isOnline: () => true });
  assert.deepEqual(
    two.scrub?.replicas.map(({ nodeId }) => nodeId),
    ['n2', 'n3'],
  ); // prettier-ignore
  const options = { startedAt: at(10), isOnline: (nodeId: string) => nodeId !== 'n2' };
  assert.throws(() => beginScrub(degraded, options), { code: 'BW_CONFLICT' });
  assert.throws(() => beginScrub(begun, { ...options, isOnline: () => true }), { code: 'BW_CONFLICT' });
});

test('it ends with the report of the last replica; what nobody waits for changes nothing', () => {
  const some = recordScrub(recordScrub(begun, report('n1'), at(11)), report('n3'), at(12));
  assert.notEqual(runningScrub(some), null);
  assert.equal(recordScrub(some, report('n1'), at(13)), some);
  assert.equal(recordScrub(some, report('n9'), at(13)), some);
  assert.equal(recordScrub(volume, report('n1'), at(13)), volume);
  const done = recordScrub(some, report('n2'), at(14));
  assert.equal(done.scrub?.finishedAt, at(14));
  assert.equal(runningScrub(done), null);
  assert.equal(done.scrub?.replicas[0]?.mismatchedRegions, 2);
});

test('the next one is due an interval after the last, sooner after a failure', () => {
  assert.deepEqual(
    [9.9, 10].map((hours) => isDue(volume, hours)),
    [false, true],
  ); // prettier-ignore
  assert.equal(isDue(begun, 1000), false);
  const end = (error: string | null): VolumeRecord =>
    ['n1', 'n2', 'n3'].reduce((record, nodeId) => recordScrub(record, report(nodeId, error), at(20)), begun);
  assert.deepEqual(
    [29.9, 30].map((hours) => isDue(end(null), hours)),
    [false, true],
  ); // prettier-ignore
  assert.deepEqual(
    [20.9, 21].map((hours) => isDue(end('x'), hours)),
    [false, true],
  ); // prettier-ignore
});
