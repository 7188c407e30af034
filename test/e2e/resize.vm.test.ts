/** A device grows with its volume, with a file system mounted on it. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { MIB, World } from './world.ts';

describe('growing', () => {
  let world: World;
  before(async () => {
    world = await World.start();
  });
  after(() => world?.close());

  for (const [fileSystem, make, grow] of [
    ['ext4', 'mkfs.ext4 -q', 'resize2fs $DEVICE'],
    ['xfs', 'mkfs.xfs -q', 'xfs_growfs /run/grown'],
  ] as const) {
    it(`a mounted ${fileSystem} grows with its volume`, async () => {
      const [volume, { id, device }] = await world.attachNew(`grown-${fileSystem}`, 320 * MIB);
      await world.shell(`${make} ${device} && mkdir -p /run/grown && mount ${device} /run/grown`);
      await world.shell(
        'dd if=/dev/urandom of=/run/grown/before bs=1M count=16 && cksum /run/grown/before > /run/sum',
      );
      const resized = await world.rest.resize(volume.id, 512 * MIB);
      assert.equal(resized.sizeBytes, 512 * MIB);
      assert.equal(await world.shell(`blockdev --getsize64 ${device}`), `${512 * MIB}\n`);
      await world.shell(grow.replace('$DEVICE', device));
      // More than there was room for; random bytes for all of it would take the emulated machine a minute.
      await world.shell(
        'cd /run/grown && for i in $(seq 22); do dd if=before of=after.$i bs=1M oflag=direct || exit 1; done && cmp before after.22',
      );
      await world.shell('cksum /run/grown/before | cmp - /run/sum && umount /run/grown');
      await world.shell(fileSystem === 'ext4' ? `fsck.ext4 -fn ${device}` : `xfs_repair -n ${device}`);

      // Another process of the agent finds the device in its new size, and grows it further.
      world.agent.process.kill('SIGKILL');
      await world.agent.process.done;
      await world.restartAgent();
      await world.rest.resize(volume.id, 516 * MIB);
      assert.equal(await world.shell(`blockdev --getsize64 ${device}`), `${516 * MIB}\n`);
      const shrink = await world.rest.refusal('PATCH', `/v1/volumes/${volume.id}`, { sizeBytes: 64 * MIB });
      assert.equal(shrink, '400 BW_INVALID_ARGUMENT');
      await world.rest.detach(id);
      const digests = await world.replicaDigests(volume);
      assert.equal(digests[0], digests[1]);
      await world.rest.deleteVolume(volume.id);
    });
  }
});
