/** A higher generation cuts the connections of older ones; what comes afterwards is served. Real rings, no control plane. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createLogger } from '@blockwire/shared/log.ts';
import { DataPlane } from './data/data-plane.ts';
import { ReplicaStore } from './store/replica-store.ts';
import { openExport } from './testing/nbd-client.ts';
import { temporaryDirectory } from './testing/node-process.ts';
import { Volumes } from './volumes.ts';

test('fencing and deleting cut exactly the connections they must', async (t) => {
  const log = createLogger('test');
  log.level = 'silent';
  const store = new ReplicaStore({
    directory: temporaryDirectory(t),
    capacityBytes: null,
    bootId: 'boot',
    log,
  });
  const plane = await DataPlane.start({
    host: '127.0.0.1',
    port: 0,
    workers: 2,
    poolBytes: 16 * 2 ** 20,
    connectionsMax: 32,
    log,
    onWorkerLost: (error) => assert.fail(error),
    onVolumeFailed: (id) => assert.fail(id),
    onDamage: (id) => assert.fail(id),
  });
  t.after(async () => {
    await plane.stop();
    store.close();
  });
  const volumes = new Volumes({ store, server: plane, log });
  for (const volumeId of ['vol-a', 'vol-b']) {
    await volumes.create({ volumeId, sizeBytes: 2 ** 20, generation: 1, epoch: 1 });
  }
  const address = `127.0.0.1:${plane.port}`;
  const old = await Promise.all([1, 2, 3, 4].map(() => openExport(address, 'vol-a')));
  const other = await openExport(address, 'vol-b');
  const block = Buffer.alloc(4096, 1);
  for (const client of old) assert.equal(await client.write(0, block), 0);

  const order = { role: 'inSync', joinedEpoch: 1, lossEpoch: 0 } as const;
  await volumes.installEpoch('vol-a', { ...order, generation: 1, epoch: 2 });
  for (const client of old) assert.equal(await client.write(0, block), 0, 'the same generation stays');
  await volumes.installEpoch('vol-a', { ...order, generation: 2, epoch: 3 });
  for (const client of old) assert.equal(await client.write(0, Buffer.alloc(4096, 9)), -1, 'cut');
  const fresh = await openExport(address, 'vol-a');
  assert.ok(block.equals(await fresh.read(0, 4096)), 'nothing of the old writer arrived after the fence');
  assert.equal(await other.write(0, block), 0);

  await volumes.delete('vol-a');
  assert.equal(await fresh.write(0, block), -1);
  await assert.rejects(openExport(address, 'vol-a'), /no such export/);
  assert.equal(await other.write(0, block), 0);
  await volumes.create({ volumeId: 'vol-a', sizeBytes: 8192, generation: 5, epoch: 5 });
  const again = await openExport(address, 'vol-a');
  assert.ok(Buffer.alloc(8192).equals(await again.read(0, 8192)), 'a new replica is empty');
  for (const client of [again, other]) client.close();
});
