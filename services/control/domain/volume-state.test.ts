import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VolumeRecord } from './records.ts';
import {
  beginAttachment,
  endAttachment,
  inSyncReplicas,
  isDegraded,
  markStale,
  newVolume,
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
