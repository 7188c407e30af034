import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VolumeRecord } from './records.ts';
import {
  addReplacement,
  forgetContent,
  type NodeFacts,
  nextToReplace,
  removeReplica,
  surplusOf,
} from './replacement-state.ts';
import { beginRebuild, completeRebuild, markStale, newVolume } from './volume-state.ts';

const volume = newVolume({
  id: 'vol-000000000001',
  name: 'a',
  sizeBytes: 4096,
  nodeIds: ['n1', 'n2'],
  createdAt: '2030-01-01T00:00:00.000Z',
});
const degraded = markStale(volume, ['n2'])!;
const replaced = addReplacement(degraded, { nodeId: 'n3', replaces: 'n2' });

const facts = (gone: string[] = [], draining: string[] = []): NodeFacts => ({
  isGone: (nodeId) => gone.includes(nodeId),
  isDraining: (nodeId) => draining.includes(nodeId),
});

function rebuilt(record: VolumeRecord, nodeId: string): VolumeRecord {
  const begun = beginRebuild(record, nodeId)!;
  return completeRebuild(begun, { nodeId, joinedEpoch: begun.epoch, sourceNodeId: 'n1' })!;
}

test('only a stale replica whose node is gone, or one on a draining node, needs another', () => {
  assert.equal(nextToReplace(degraded, facts()), null);
  assert.equal(nextToReplace(degraded, facts(['n2'])), 'n2');
  assert.equal(nextToReplace(volume, facts(['n2'])), null);
  assert.equal(nextToReplace(volume, facts([], ['n1'])), 'n1');
  // Neither half of one under way.
  assert.equal(nextToReplace(replaced, facts(['n2', 'n3'], ['n2', 'n3'])), null);
});

test('a replacement has nothing, and changes no epoch', () => {
  assert.equal(replaced.epoch, degraded.epoch);
  assert.deepEqual(replaced.replicas.at(-1), {
    nodeId: 'n3',
    state: 'stale',
    staleSinceEpoch: 0,
    replaces: 'n2',
  });
  assert.deepEqual(surplusOf(replaced, facts(['n2'])), []);
});

test('the new one in sync first: the old one goes', () => {
  const done = rebuilt(replaced, 'n3');
  assert.deepEqual(surplusOf(done, facts(['n2'])), [{ step: 'remove', nodeId: 'n2', keptNodeId: 'n3' }]);
  const left = removeReplica(done, 'n2');
  assert.deepEqual(
    left.replicas.map(({ nodeId, replaces }) => [nodeId, replaces]),
    [
      ['n1', undefined],
      ['n3', undefined],
    ], // prettier-ignore
  );
  assert.deepEqual(surplusOf(left, facts()), []);
});

test('the old one in sync first: the new one goes, from the membership before it goes from the record', () => {
  const back = rebuilt(replaced, 'n2');
  assert.deepEqual(surplusOf(back, facts()), [{ step: 'remove', nodeId: 'n3', keptNodeId: 'n2' }]);
  const rebuilding = beginRebuild(back, 'n3')!;
  assert.deepEqual(surplusOf(rebuilding, facts()), [{ step: 'setAside', nodeId: 'n3', keptNodeId: 'n2' }]);
  assert.equal(removeReplica(rebuilding, 'n3').replicas.length, 3, 'not while it gets writes');
  // Back, but being drained: it waits for the new one.
  assert.deepEqual(surplusOf(back, facts([], ['n2'])), []);
});

test('drained: the old one leaves the membership when the new one is in sync', () => {
  const moving = addReplacement(volume, { nodeId: 'n3', replaces: 'n2' });
  const draining = facts([], ['n2']);
  assert.deepEqual(surplusOf(moving, draining), []);
  const done = rebuilt(moving, 'n3');
  assert.deepEqual(surplusOf(done, draining), [{ step: 'setAside', nodeId: 'n2', keptNodeId: 'n3' }]);
  const aside = markStale(done, ['n2'])!;
  assert.deepEqual(surplusOf(aside, draining), [{ step: 'remove', nodeId: 'n2', keptNodeId: 'n3' }]);
  // Given up before: the new one goes.
  assert.equal(surplusOf(moving, facts())[0]?.nodeId, 'n3');
});

test('a replacement whose own node is gone or drained is given up for another', () => {
  for (const lost of [facts(['n2', 'n3']), facts(['n2'], ['n3'])]) {
    assert.deepEqual(surplusOf(replaced, lost), [{ step: 'remove', nodeId: 'n3', keptNodeId: null }]);
  }
  assert.equal(nextToReplace(removeReplica(replaced, 'n3'), facts(['n2', 'n3'])), 'n2');
});

test('a stale replica that its node has lost needs everything; one that counts is left alone', () => {
  assert.equal(forgetContent(degraded, 'n2').replicas[1]?.staleSinceEpoch, 0);
  assert.deepEqual(forgetContent(degraded, 'n1'), degraded);
});
