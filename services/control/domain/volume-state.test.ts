import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VolumeRecord } from './records.ts';
import {
  acceptLoss,
  beginAttachment,
  beginRebuild,
  completeRebuild,
  endAttachment,
  inSyncReplicas,
  isDegraded,
  markStale,
  newVolume,
  nextGeneration,
  promoteReplica,
  writtenReplicas,
} from './volume-state.ts';

function volume(changes: Partial<VolumeRecord> = {}): VolumeRecord {
  const made = newVolume({
    id: 'vol-000000000001',
    name: 'a',
    sizeBytes: 4096,
    nodeIds: ['n1', 'n2', 'n3'],
    createdAt: '2030-01-01T00:00:00.000Z',
  });
  return { ...made, state: 'available', ...changes };
}

const stateOf = (record: VolumeRecord, nodeId: string) =>
  record.replicas.find((replica) => replica.nodeId === nodeId);

test('a new volume is in sync everywhere', () => {
  assert.equal(inSyncReplicas(volume()).length, 3);
  assert.equal(isDegraded(volume()), false);
});

test('a lost replica is stale since the next epoch, and the generation stays', () => {
  const next = markStale(volume(), ['n2']);
  assert.ok(next);
  assert.equal(next.epoch, 2);
  assert.equal(next.generation, 1);
  assert.deepEqual(stateOf(next, 'n2'), { nodeId: 'n2', state: 'stale', staleSinceEpoch: 2 });
  assert.equal(stateOf(next, 'n1')?.state, 'inSync');
  assert.equal(isDegraded(next), true);
});

test('losing a replica that is stale, or no member, changes nothing', () => {
  const once = markStale(volume(), ['n2']);
  assert.ok(once);
  assert.equal(markStale(once, ['n2']), once);
  assert.equal(markStale(once, ['n9']), once);
});

test('the last in-sync replica never goes stale, alone or with others', () => {
  const two = markStale(volume(), ['n1']);
  assert.ok(two);
  assert.equal(markStale(two, ['n2', 'n3']), null);
  const one = markStale(two, ['n2']);
  assert.ok(one);
  assert.equal(markStale(one, ['n3']), null);
  assert.equal(markStale(volume(), ['n1', 'n2', 'n3']), null);
});

test('an attach raises the generation and marks what cannot be reached in the same step', () => {
  const attached = beginAttachment(volume(), { attachmentId: 'att-1', unreachableNodeIds: ['n3'] });
  assert.equal(attached.state, 'inUse');
  assert.equal(attached.attachmentId, 'att-1');
  assert.equal(attached.generation, 2);
  assert.equal(attached.epoch, 2);
  assert.equal(stateOf(attached, 'n3')?.state, 'stale');
  const all = beginAttachment(volume(), { attachmentId: 'att-1', unreachableNodeIds: [] });
  assert.equal(all.epoch, 1);
});

test('an attach is refused while attached, while creating, and without a reachable in-sync replica', () => {
  const options = { attachmentId: 'att-2', unreachableNodeIds: [] };
  assert.throws(() => beginAttachment(volume({ state: 'inUse', attachmentId: 'att-1' }), options), {
    code: 'BW_VOLUME_IN_USE',
  });
  assert.throws(() => beginAttachment(volume({ state: 'creating' }), options), {
    code: 'BW_VOLUME_NOT_READY',
  });
  assert.throws(
    () => beginAttachment(volume(), { attachmentId: 'att-2', unreachableNodeIds: ['n1', 'n2', 'n3'] }),
    { code: 'BW_NO_IN_SYNC_REPLICA' },
  );
});

test('a detach keeps the generation and does nothing to another attachment', () => {
  const attached = beginAttachment(volume(), { attachmentId: 'att-1', unreachableNodeIds: [] });
  assert.equal(endAttachment(attached, 'att-0'), attached);
  const freed = endAttachment(attached, 'att-1');
  assert.equal(freed.state, 'available');
  assert.equal(freed.attachmentId, null);
  assert.equal(freed.generation, 2);
});

function rebuilding(): VolumeRecord {
  const stale = markStale(volume(), ['n2']);
  assert.ok(stale);
  const begun = beginRebuild(stale, 'n2');
  assert.ok(begun);
  return begun;
}

test('a rebuild gets writes from its epoch on, and keeps what it lacks until it is in sync', () => {
  const begun = rebuilding();
  assert.equal(begun.epoch, 3);
  assert.deepEqual(stateOf(begun, 'n2'), {
    nodeId: 'n2',
    state: 'rebuilding',
    staleSinceEpoch: 2,
    joinedEpoch: 3,
  });
  assert.equal(writtenReplicas(begun).length, 3);
  assert.equal(inSyncReplicas(begun).length, 2);
  const done = completeRebuild(begun, { nodeId: 'n2', joinedEpoch: 3, sourceNodeId: 'n1' });
  assert.equal(done?.epoch, 4);
  assert.equal(stateOf(done!, 'n2')?.state, 'inSync');
  assert.equal(stateOf(done!, 'n2')?.staleSinceEpoch, null);
});

test('only the rebuild under way completes, and only from a source in sync', () => {
  const begun = rebuilding();
  assert.equal(completeRebuild(begun, { nodeId: 'n2', joinedEpoch: 2, sourceNodeId: 'n1' }), null);
  assert.equal(completeRebuild(begun, { nodeId: 'n1', joinedEpoch: 1, sourceNodeId: 'n3' }), null);
  const lost = markStale(begun, ['n1']);
  assert.ok(lost);
  assert.equal(completeRebuild(lost, { nodeId: 'n2', joinedEpoch: 3, sourceNodeId: 'n1' }), null);
  assert.ok(completeRebuild(lost, { nodeId: 'n2', joinedEpoch: 3, sourceNodeId: 'n3' }));
});

test('a rebuild that ends early leaves what was lacking before', () => {
  const lost = markStale(rebuilding(), ['n2']);
  assert.equal(lost?.epoch, 4);
  assert.equal(stateOf(lost!, 'n2')?.state, 'stale');
  assert.equal(stateOf(lost!, 'n2')?.staleSinceEpoch, 2);
  assert.equal(beginRebuild(volume(), 'n2'), null);
});

test('a rebuild does not outlive its writer', () => {
  const next = nextGeneration(rebuilding());
  assert.equal(next.generation, 2);
  assert.equal(next.epoch, 4);
  assert.equal(stateOf(next, 'n2')?.state, 'stale');
  assert.equal(nextGeneration(volume()).epoch, 1);
});

test('a replica being rebuilt does not keep the last in-sync one from being the last', () => {
  const two = markStale(rebuilding(), ['n3']);
  assert.ok(two);
  assert.equal(markStale(two, ['n1']), null);
});

test('a promoted replica counts, and the others lack everything since it fell behind', () => {
  const first = markStale(volume(), ['n2']);
  const second = markStale(first!, ['n3']);
  assert.ok(second);
  const promoted = promoteReplica(second, 'n3');
  assert.equal(promoted.epoch, 4);
  assert.equal(stateOf(promoted, 'n3')?.state, 'inSync');
  assert.deepEqual(
    ['n1', 'n2'].map((nodeId) => stateOf(promoted, nodeId)?.staleSinceEpoch),
    [3, 2],
  );
  assert.throws(() => promoteReplica(promoted, 'n3'), { code: 'BW_CONFLICT' });
  assert.throws(() => promoteReplica({ ...second, attachmentId: 'att-1' }, 'n3'), {
    code: 'BW_VOLUME_IN_USE',
  });
});

test('accepting a loss is a new epoch that says so', () => {
  const accepted = acceptLoss(volume());
  assert.equal(accepted.epoch, 2);
  assert.equal(accepted.lossEpoch, 2);
  const ended = acceptLoss(rebuilding());
  assert.equal(stateOf(ended, 'n2')?.state, 'stale');
  assert.deepEqual([ended.epoch, ended.lossEpoch], [4, 4]);
});
