import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { MemoryStore } from '../store/memory.ts';
import { Attachments } from './attachments.ts';
import type { Context } from './context.ts';
import { ControlEvents } from './events.ts';
import { attachments, DEFAULT_DEVICE_OPTIONS, deviceTombstones, volumes } from './records.ts';
import { TombstoneCollector } from './tombstones.ts';
import { beginAttachment, newVolume } from './volume-state.ts';

test('an attachment that another control plane has begun and left is taken away by force only', async () => {
  const store = new MemoryStore();
  const silent = { info() {}, warn() {}, error() {}, debug() {} };
  const context = {
    ...{ store, events: new ControlEvents(), log: silent, now: () => 0, timing: { detachMs: 1 } },
    agentFleet: {
      dispatch: () => Promise.reject(new BlockwireError('BW_AGENT_OFFLINE', 'away')),
      ...{ isOnline: () => false, waitOnline: () => Promise.resolve(false) },
    },
  } as unknown as Context;
  const made = newVolume({ id: 'vol-1', name: 'v', sizeBytes: 2 ** 20, nodeIds: ['node-1'], createdAt: '' });
  const volume = beginAttachment(
    { ...made, state: 'available' },
    { attachmentId: 'att-1', unreachableNodeIds: [] },
  );
  await store.commit([
    volumes.create('vol-1', volume),
    attachments.create('att-1', {
      ...{ id: 'att-1', volumeId: 'vol-1', agentId: 'agent-1', state: 'attaching', device: null },
      ...{ datapath: 'auto', options: DEFAULT_DEVICE_OPTIONS, generation: 2, createdAt: '' },
    }),
  ]);
  const domain = new Attachments(context, new TombstoneCollector(context));
  await assert.rejects(domain.detach('att-1', { force: false }), { code: 'BW_CONFLICT' });
  await domain.detach('att-1', { force: true });
  assert.equal((await volumes.get(store, 'vol-1'))!.value.attachmentId, null);
  // Its agent may have the device all the same.
  assert.equal((await deviceTombstones.list(store, 'agent-1')).length, 1);
});
