/** Snapshots of a volume under load: every replica's is the same moment, and a clone of it is a volume like any other. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Load } from './load.ts';
import { longestStall } from './stall.ts';
import { type LabWorld, MIB, World } from './world.ts';

const SIZE_BYTES = 64 * MIB;

describe('a snapshot', () => {
  let world: LabWorld;
  before(async () => {
    world = await World.startLab({ lab: { nodes: 2, reflink: true } });
  });
  after(() => world?.close());

  it('of an attached volume under load: replicas identical, the file system in it complete; so is a clone', async (t) => {
    const [volume, { id, device }] = await world.attachNew('busy', SIZE_BYTES);
    await world.shell(`mkfs.ext4 -q ${device} && mkdir -p /run/busy /run/clone && mount ${device} /run/busy`);
    await world.shell('cp -r proto/nbd /run/busy/kept && sync -f /run/busy');
    const load = Load.files(world, '/run/busy');
    for (const name of ['one', 'two', 'three']) {
      const startMs = performance.now();
      await world.rest.createSnapshot(volume.id, name);
      t.diagnostic(`${name}: made in ${Math.round(performance.now() - startMs)} ms`);
    }
    load.assertGoesOn();
    await load.stop();
    await world.shell(`umount /run/busy && fsck.ext4 -fn ${device}`);
    for (const name of ['one', 'two', 'three']) {
      const [one, other] = await world.replicaDigests(volume, name);
      assert.equal(one, other, `${name} differs`);
    }

    const clone = await world.rest.cloneVolume({
      name: 'clone',
      source: { volume: volume.id, snapshot: 'two' },
    });
    assert.equal(clone.sizeBytes, SIZE_BYTES);
    const attached = await world.rest.attach({ volume: clone.id });
    // Taken in the middle of things: the journal is replayed, then all is well, and what had been synced is there.
    await world.shell(`mount ${attached.device} /run/clone && diff -r proto/nbd /run/clone/kept`);
    await world.shell(`touch /run/clone/new && umount /run/clone && fsck.ext4 -fn ${attached.device}`);
    await world.rest.detach(attached.id);
    const [one, other] = await world.replicaDigests(clone);
    assert.equal(one, other, 'the replicas of the clone differ');
    await world.rest.deleteVolume(clone.id);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });

  it('how long I/O is held back', async (t) => {
    const [volume, { id, device }] = await world.attachNew('held', 16 * MIB);
    const stall = await longestStall(world, device, {
      seconds: 10,
      happen: () => world.rest.createSnapshot(volume.id, 'held'),
    });
    t.diagnostic(JSON.stringify(stall));
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });
});
