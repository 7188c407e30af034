import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Logger } from '@blockwire/shared/log.ts';
import { MemoryStore } from '../store/memory.ts';
import type { Context } from './context.ts';
import { ControlEvents, EventStore } from './events.ts';
import { adoptReported, noteUnclean } from './membership.ts';
import { type VolumeRecord, volumes } from './records.ts';
import { wentStale } from './replica-events.ts';
import { beginRebuild, markStale, newVolume, nextGeneration } from './volume-state.ts';

const VOLUME: VolumeRecord = {
  ...newVolume({ id: 'vol-1', name: 'v', sizeBytes: 2 ** 20, nodeIds: ['a', 'b', 'c'], createdAt: '' }),
  state: 'available',
};

/** A store with the volume, and everything that is told of it in short. */
async function told(volume: VolumeRecord): Promise<{ context: Context; heard: string[] }> {
  const log = { info() {}, warn() {}, error() {} } as unknown as Logger;
  const events = new ControlEvents();
  const store = new EventStore(new MemoryStore(), { events, log, now: () => 0 });
  await store.commit([volumes.create(volume.id, volume)]);
  const heard: string[] = [];
  events.on('change', (event) => {
    const node = 'node' in event ? event.node : '';
    const epoch = 'epoch' in event ? event.epoch : '';
    heard.push(`${event.type} ${node} ${epoch}`);
  });
  return { context: { store, events, log } as unknown as Context, heard };
}

test('every replica that a step leaves stale is told, with its reason, and no other', () => {
  const stale = markStale(VOLUME, ['b'])!;
  const reason = (node: string): string => `${node} is away`;
  assert.deepEqual(wentStale(VOLUME, stale, reason), [
    { type: 'replica.stale', volume: 'vol-1', node: 'b', epoch: 2, reason: 'b is away' },
  ]);
  assert.deepEqual(wentStale(stale, stale, reason), []);
  const rebuilding = beginRebuild(stale, 'b')!;
  assert.deepEqual(wentStale(stale, rebuilding, reason), []);
  assert.deepEqual(
    wentStale(rebuilding, nextGeneration(rebuilding), reason).map((event) => 'node' in event && event.node),
    ['b'],
  );
});

test('a power failure is told as a stale replica, at the last one as a loss, with the rebuilds that it ends', async () => {
  const whole = await told(VOLUME);
  await noteUnclean(whole.context, { nodeId: 'a', volumeId: 'vol-1', epoch: 1 });
  assert.deepEqual(whole.heard, ['replica.stale a 2']);

  const last = await told(beginRebuild(markStale(VOLUME, ['b', 'c'])!, 'b')!);
  await noteUnclean(last.context, { nodeId: 'a', volumeId: 'vol-1', epoch: 3 });
  assert.deepEqual(last.heard, ['replica.lossy a 4', 'replica.stale b 4']);
});

test('a later membership that a node knows is told', async () => {
  const { context, heard } = await told(VOLUME);
  await adoptReported(context, { nodeId: 'a', volumeId: 'vol-1', generation: 7, epoch: 9 });
  await adoptReported(context, { nodeId: 'b', volumeId: 'vol-1', generation: 7, epoch: 9 });
  assert.deepEqual(heard, ['volume.adopted a 9']);
});

test('an event is stored with its time if its change is, and told only then', async () => {
  const { context, heard } = await told(VOLUME);
  const conflicting = volumes.create('vol-1', VOLUME);
  const event = { type: 'volume.created', volume: 'vol-1' } as const;
  assert.equal((await context.store.commit([conflicting], [event])).committed, false);
  assert.deepEqual([heard, (await context.store.events(0, 9)).events], [[], []]);
  context.store.note({ type: 'node.online', node: 'a' });
  assert.deepEqual(heard, ['node.online a ']);
  const { events } = await context.store.events(0, 9);
  assert.deepEqual(events, [
    { id: 1, value: { at: '1970-01-01T00:00:00.000Z', type: 'node.online', node: 'a' } },
  ]);
});
