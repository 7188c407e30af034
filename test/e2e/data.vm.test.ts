/** The whole path of the data, in each mode: what is written is read back, and both replicas hold the same bytes. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { eventually, fioVerify, MIB, World } from './world.ts';

const SIZE_BYTES = 128 * MIB;

describe('the data path', () => {
  let world: World;
  before(async () => {
    world = await World.start();
  });
  after(() => world?.close());

  for (const mode of ['fused', 'copy']) {
    it(`${mode}: random writes are verified, and both replicas are identical`, async () => {
      const [volume, attachment] = await world.attachNew(`verify-${mode}`, SIZE_BYTES, mode);
      assert.equal(attachment.datapath, mode);
      const { device } = attachment;
      assert.equal(
        await world.agentMetric('blockwire_agent_device_info', { volume: volume.id, datapath: mode }),
        1,
      );
      await world.shell(fioVerify(device, { sizeBytes: SIZE_BYTES / 2 }));
      // Many writes in flight on few blocks: replicas that applied them in different order would differ.
      await world.shell(
        `fio --name=overlap --filename=${device} --rw=randwrite --bsrange=4k-64k --norandommap --offset=64m --size=1m ` +
          '--io_size=16m --direct=1 --ioengine=libaio --iodepth=32 --refill_buffers',
      );
      assert.ok((await world.agentMetric('blockwire_agent_overlaps_total', { volume: volume.id })) > 0);

      await world.rest.detach(attachment.id);
      await world.shell(`test ! -e ${device}`);
      const detached = await world.rest.volume(volume.id);
      assert.equal(detached.state, 'available');
      assert.equal(detached.degraded, false, JSON.stringify(detached));
      assert.equal(detached.epoch, volume.epoch);

      const digests = await world.replicaDigests(volume);
      assert.equal(digests.length, 2);
      assert.equal(digests[0], digests[1]);
      assert.notEqual(digests[0], digestOfZeroes(SIZE_BYTES), 'nothing was written');
      await world.rest.deleteVolume(volume.id);
    });
  }

  it('a file system is written, read again from the replicas, and clean', async () => {
    const [volume, first] = await world.attachNew('files', SIZE_BYTES);
    const source = 'node_modules/typescript/package.json agent services/control';
    await world.shell(
      `mkfs.ext4 -q ${first.device} && mkdir -p /run/files && mount ${first.device} /run/files`,
    );
    await world.shell(`cp -rL ${source} /run/files && umount /run/files && fsck.ext4 -fn ${first.device}`);
    await world.rest.detach(first.id);

    const second = await world.rest.attach({ volume: volume.id });
    await world.shell(`mount -o ro ${second.device} /run/files`);
    await world.shell('diff -r agent /run/files/agent && diff -r services/control /run/files/control');
    await world.shell('umount /run/files');
    await world.rest.detach(second.id);
    await world.rest.deleteVolume(volume.id);
  });

  it('discard frees space on the nodes, and what was discarded reads as zeroes', async () => {
    const [volume, { id, device }] = await world.attachNew('discard', SIZE_BYTES);
    const allocated = (): number[] =>
      volume.replicas.map(({ node }) => statSync(world.cluster.dataFile(node, volume.id)).blocks * 512);
    await world.shell(`dd if=/dev/urandom of=${device} bs=1M count=32 oflag=direct`);
    assert.ok(allocated().every((bytes) => bytes >= 32 * MIB));
    await world.shell(`blkdiscard --offset 0 --length ${16 * MIB} ${device}`);
    assert.ok(
      allocated().every((bytes) => bytes <= 17 * MIB),
      `still allocated: ${allocated().join(', ')}`,
    );
    await world.shell(`cmp --bytes=${16 * MIB} ${device} /dev/zero`);

    await world.shell(`mkfs.ext4 -q ${device} && mount ${device} /run/files`);
    await world.shell('cp -r node_modules/typescript/lib /run/files && sync && rm -r /run/files/lib && sync');
    const before = allocated();
    await world.shell('fstrim /run/files && umount /run/files');
    for (const [replica, bytes] of allocated().entries()) assert.ok(bytes < before[replica]!);
    await world.shell(`fsck.ext4 -fn ${device}`);
    await world.rest.detach(id);
    const digests = await world.replicaDigests(volume);
    assert.equal(digests[0], digests[1]);
    await world.rest.deleteVolume(volume.id);
  });

  it('every process reports its health and what it did', async () => {
    const [volume, { id, device }] = await world.attachNew('metrics', 16 * MIB);
    await world.shell(`dd if=/dev/urandom of=${device} bs=64k count=16 oflag=direct conv=fsync`);
    await world.shell(`dd if=${device} of=/dev/null bs=64k count=16 iflag=direct`);
    await world.shell(`blkdiscard --offset 0 --length ${MIB} ${device}`);

    const perVolume = { volume: volume.id, device };
    for (const operation of ['read', 'write', 'flush', 'trim']) {
      const count = await world.agentMetric('blockwire_agent_requests_total', { ...perVolume, operation });
      assert.ok(count > 0, `agent: ${operation} is ${count}`);
    }
    assert.equal(
      await world.agentMetric('blockwire_agent_bytes_total', { ...perVolume, operation: 'write' }),
      MIB,
    );
    assert.equal(await world.agentMetric('blockwire_agent_errors_total', perVolume), 0);
    for (const { node } of volume.replicas) {
      assert.equal(
        await world.agentMetric('blockwire_agent_replica_connected', { volume: volume.id, node }),
        1,
      );
      for (const series of [
        'write_requests_total',
        'written_bytes_total',
        'flush_requests_total',
        'connections',
      ]) {
        const value = await world.nodeMetric(node, `blockwire_node_${series}`);
        assert.ok(value > 0, `${node}: ${series} is ${value}`);
      }
    }
    const control = await (await fetch(`${world.rest.url}/metrics`)).text();
    assert.match(control, /^blockwire_control_volumes\{state="inUse"\} 1$/m);
    assert.match(control, /^blockwire_control_nodes\{state="online"\} 2$/m);
    assert.match(control, /^blockwire_control_agents\{state="online"\} 1$/m);
    assert.match(control, /^blockwire_control_http_requests_total\{.*route="\/v1\/volumes".*\} [1-9]/m);

    for (const url of [world.rest.url, ...world.cluster.nodes.map(({ metrics }) => metrics)]) {
      assert.equal((await fetch(`${url}/healthz`)).status, 200, url);
    }
    await world.agent.get('/healthz');
    await world.rest.detach(id);
    await eventually(
      () => world.agentMetric('blockwire_agent_device_info', { volume: volume.id }),
      (value) => Number.isNaN(value),
    );
  });
});

function digestOfZeroes(sizeBytes: number): string {
  const hash = createHash('sha256');
  const zeroes = Buffer.alloc(MIB);
  for (let done = 0; done < sizeBytes; done += MIB) hash.update(zeroes);
  return hash.digest('hex');
}
