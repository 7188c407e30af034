/** What cannot be done is refused with its code, by the real processes, which live on. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, it } from 'node:test';
import { eventually, MIB, World } from './world.ts';

describe('refusals', () => {
  let world: World;
  before(async () => {
    world = await World.start();
  });
  after(() => world?.close());
  afterEach(async () => {
    for (const url of [world.rest.url, ...world.cluster.nodes.map(({ metrics }) => metrics)]) {
      assert.equal((await fetch(`${url}/healthz`)).status, 200, url);
    }
    await world.agent.get('/healthz');
  });

  it('volumes that cannot be', async () => {
    const volume = await world.rest.createVolume({ name: 'taken', sizeBytes: 16 * MIB, replicas: 2 });
    const create = (body: unknown) => world.rest.refusal('POST', '/v1/volumes', body);
    const good = { name: 'other', sizeBytes: 16 * MIB, replicas: 2 };
    assert.equal(await create({ ...good, sizeBytes: 2 ** 46 }), '507 BW_NOT_ENOUGH_SPACE');
    assert.equal(await create({ ...good, replicas: 0 }), '400 BW_INVALID_ARGUMENT');
    assert.equal(await create({ ...good, replicas: 3 }), '409 BW_NOT_ENOUGH_NODES');
    assert.equal(await create({ ...good, sizeBytes: 1000 }), '400 BW_INVALID_ARGUMENT');
    assert.equal(await create({ ...good, name: 'taken' }), '409 BW_VOLUME_NAME_TAKEN');
    const unknown = '/v1/volumes/vol-000000000000';
    assert.equal(await world.rest.refusal('GET', unknown), '404 BW_VOLUME_NOT_FOUND');
    assert.equal(await world.rest.refusal('GET', '/v1/volumes/nonsense'), '404 BW_VOLUME_NOT_FOUND');
    await world.rest.deleteVolume(volume.id);
    assert.equal(await world.rest.refusal('GET', `/v1/volumes/${volume.id}`), '404 BW_VOLUME_NOT_FOUND');
  });

  it('attachments that cannot be', async () => {
    const [volume, { id, device }] = await world.attachNew('attached', 16 * MIB);
    const attach = (body: unknown) => world.rest.refusal('POST', '/v1/attachments', body);
    assert.equal(await attach({ volume: volume.id }), '409 BW_VOLUME_IN_USE');
    assert.equal(await world.rest.refusal('DELETE', `/v1/volumes/${volume.id}`), '409 BW_VOLUME_IN_USE');
    assert.equal(await attach({ volume: volume.id, datapath: 'magic' }), '400 BW_INVALID_ARGUMENT');
    assert.equal(await attach({ volume: 'vol-000000000000' }), '404 BW_VOLUME_NOT_FOUND');
    assert.equal(await attach({ volume: volume.id, agent: 'nobody' }), '409 BW_VOLUME_IN_USE');
    const unknown = '/v1/attachments/att-000000000000';
    assert.equal(await world.rest.refusal('DELETE', unknown), '404 BW_ATTACHMENT_NOT_FOUND');

    // None of this touched the device.
    await world.shell(`dd if=/dev/urandom of=${device} bs=4k count=1 oflag=direct`);
    await world.rest.detach(id);
    assert.equal(await world.rest.refusal('DELETE', `/v1/attachments/${id}`), '404 BW_ATTACHMENT_NOT_FOUND');
    assert.equal(await attach({ volume: volume.id, agent: 'nobody' }), '404 BW_AGENT_NOT_FOUND');
    await world.rest.deleteVolume(volume.id);
  });

  it('a device that is mounted stays, and goes when it is not', async () => {
    const [volume, { id, device }] = await world.attachNew('mounted', 32 * MIB);
    await world.shell(`mkfs.ext4 -q ${device} && mkdir -p /run/mounted && mount ${device} /run/mounted`);
    const detach = () => world.rest.refusal('DELETE', `/v1/attachments/${id}`);
    assert.equal(await detach(), '409 BW_DEVICE_BUSY');
    assert.equal(await detach(), '409 BW_DEVICE_BUSY');
    assert.equal((await world.rest.attachment(id)).state, 'attached');
    await world.shell('echo still here > /run/mounted/file && sync && grep -q here /run/mounted/file');
    await world.shell(`umount /run/mounted && fsck.ext4 -fn ${device}`);
    await world.rest.detach(id);
    await world.shell(`test ! -e ${device}`);
    assert.equal((await world.rest.volume(volume.id)).degraded, false);
    await world.rest.deleteVolume(volume.id);
  });

  it('an agent that is asked to end takes its device with it, and its volume can be had again', async () => {
    const [volume, { id, device }] = await world.attachNew('orphan', 16 * MIB);
    await world.shell(`dd if=/dev/urandom of=${device} bs=4k count=4 oflag=direct`);
    assert.equal(await world.agent.stop(), 0, world.describe());
    await world.shell(`test ! -e ${device} && test ! -e ${device.replace('ublkb', 'ublkc')}`);

    await world.restartAgent();
    await eventually(
      () => world.rest.attachment(id),
      ({ state }) => state === 'lost',
    );
    await world.rest.detach(id);
    const again = await world.rest.attach({ volume: volume.id });
    await world.rest.detach(again.id);
    const { degraded } = await world.rest.volume(volume.id);
    assert.equal(degraded, false);
    await world.rest.deleteVolume(volume.id);
  });
});
