/** The node against a control plane in this process: register, commands, reconnection. The data plane is a stand-in. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createLogger } from '@blockwire/shared/log.ts';
import { Registration } from './registration.ts';
import { ReplicaStore } from './store/replica-store.ts';
import { ControlPlane } from './testing/control-plane.ts';
import { eventually, temporaryDirectory } from './testing/node-process.ts';
import { type VolumeServer, Volumes } from './volumes.ts';

const MIB = 2 ** 20;

test('registers, carries out commands, answers with stable codes, and comes back', async (t) => {
  const log = createLogger('test');
  log.level = 'silent';
  const directory = temporaryDirectory(t);
  const store = new ReplicaStore({ directory, capacityBytes: 100 * MIB, bootId: 'boot', log });
  const done: string[] = [];
  const keys: number[] = [];
  const server: VolumeServer = {
    add: async ({ id, sizeBytes }) => void done.push(`add ${id} ${sizeBytes}`),
    remove: async (id) => void done.push(`remove ${id}`),
    install: async (id, { installed, cut }) => void done.push(`install ${id} ${installed.generation} ${cut}`),
    hold: async (id) => void done.push(`hold ${id}`),
    unhold: async (id) => void done.push(`unhold ${id}`),
    copy: () => assert.fail('nothing is copied'),
    peek: () => assert.fail('nothing is compared'),
    resize: async (id, sizeBytes) => void done.push(`resize ${id} ${sizeBytes}`),
  };
  const volumes = new Volumes({ store, server, log });
  const control = new ControlPlane();
  control.capabilityKey = Buffer.alloc(32, 7);
  await control.start();
  const registration = new Registration({
    control: `127.0.0.1:${control.port}`,
    nodeId: 'node-1',
    nbdAddress: '127.0.0.1:1',
    peerAddress: null,
    zone: 'z1',
    version: '1.2.3',
    store,
    volumes,
    onCapabilityKey: async (key) => void keys.push(key[0] ?? -1),
    log,
  });
  t.after(async () => {
    await registration.stop();
    control.stop();
    store.close();
  });
  await registration.registered;
  assert.equal(registration.connected, true);
  assert.deepEqual(keys, [7]);
  const [hello] = control.registered;
  assert.equal(hello?.capacityBytes, 100 * MIB);
  assert.equal(hello?.zone, 'z1');
  await eventually('a heartbeat', () => control.beats.length > 0);

  const volumeId = 'vol-1';
  const create = { createReplica: { volumeId, sizeBytes: 60 * MIB, generation: 1, epoch: 1 } };
  assert.equal(await control.command(create), '');
  assert.equal(await control.command(create), '', 'safe to repeat');
  assert.equal(
    await control.command({ createReplica: { ...create.createReplica, sizeBytes: MIB } }),
    'BW_REPLICA_EXISTS',
  );
  assert.equal(
    await control.command({ createReplica: { ...create.createReplica, volumeId: 'vol-2' } }),
    'BW_NOT_ENOUGH_SPACE',
  );
  assert.equal(
    await control.command({ createReplica: { ...create.createReplica, volumeId: '../etc' } }),
    'BW_INVALID_ARGUMENT',
  );
  assert.equal(await control.command({ installEpoch: { volumeId, generation: 3, epoch: 2 } }), '');
  assert.equal(store.get(volumeId).descriptor.generation, 3);
  assert.equal(
    await control.command({ installEpoch: { volumeId, generation: 2, epoch: 9 } }),
    'BW_GENERATION_OLD',
  );
  assert.equal(
    await control.command({ installEpoch: { volumeId, generation: 3, epoch: 1 } }),
    'BW_EPOCH_OLD',
  );
  assert.equal(
    await control.command({ installEpoch: { volumeId: 'vol-9', generation: 1, epoch: 1 } }),
    'BW_REPLICA_NOT_FOUND',
  );
  assert.equal(await control.command({}), 'BW_PROTOCOL');
  const rebuilding = { role: 'REPLICA_STATE_REBUILDING', generation: 3, epoch: 2, joinedEpoch: 2 } as const;
  assert.equal(await control.command({ installEpoch: { volumeId, ...rebuilding } }), '');
  assert.equal(store.installed(volumeId).role, 'rebuilding');
  assert.deepEqual(done, [
    `add vol-1 ${60 * MIB}`,
    'install vol-1 3 olderGenerations',
    'install vol-1 3 all',
  ]);

  // The control plane forgot the node: it registers again, with what it holds.
  const registrations = control.registered.length;
  control.refuseHeartbeats = true;
  await eventually('a new registration', () => control.registered.length > registrations);
  assert.deepEqual(control.registered.at(-1)?.replicas, [
    { volumeId, sizeBytes: 60 * MIB, generation: 3, epoch: 2, unclean: false },
  ]);

  // The control plane goes away and comes back.
  control.stop();
  await eventually('the loss', () => !registration.connected);
  const before = control.registered.length;
  await control.start();
  await eventually('the return', () => control.registered.length > before);
  assert.equal(await control.command({ deleteReplica: { volumeId } }), '');
  assert.equal(await control.command({ deleteReplica: { volumeId } }), '', 'safe to repeat');
  assert.equal(done.at(-1), 'remove vol-1');
  assert.equal(store.freeBytes(), 100 * MIB);
});
