/**
 * What an operator does, or need not do: replicas that move to other nodes under load, a stale one that is taken all
 * the same, and data that rots.
 */
import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { Load } from './load.ts';
import type { Volume } from './rest.ts';
import { eventually, type LabWorld, MIB, World } from './world.ts';

const SIZE_BYTES = 32 * MIB;
const REPLACE_AFTER = '5s';

describe('replicas that move', () => {
  let world: LabWorld;
  before(async () => {
    world = await World.startLab({
      lab: { nodes: 3, control: ['--replace-after', REPLACE_AFTER] },
      agent: { replicaTimeoutMs: 2000 },
    });
  });
  after(() => world?.close());

  const nodesOf = ({ replicas }: Volume): string[] => replicas.map(({ node }) => node).sort();

  /** Resolves when the volume's replicas are in sync on all nodes but this one. */
  const movedFrom = (nodeId: string, { id }: Volume): Promise<Volume> =>
    eventually(
      () => world.rest.volume(id),
      (volume) => volume.replicas.length === 2 && !volume.degraded && !nodesOf(volume).includes(nodeId),
      120_000,
    );

  it('a node is drained under load, and one that stays away is replaced', async () => {
    const [volume, { id, device }] = await world.attachNew('moved', SIZE_BYTES);
    const load = Load.fio(world, device, SIZE_BYTES / 4);
    const [drained, other] = nodesOf(volume) as [string, string];
    await world.rest.drain(drained);
    const after = await movedFrom(drained, volume);
    assert.deepEqual(
      nodesOf(after),
      world.cluster.nodes.map((node) => node.id).filter((name) => name !== drained),
    );
    load.assertGoesOn();
    await world.rest.drain(drained, { end: true });

    await world.cluster.kill(other);
    const replaced = await movedFrom(other, volume);
    load.assertGoesOn();
    assert.ok((await load.stop()) >= 1);
    assert.equal(await world.agentMetric('blockwire_agent_errors_total', { volume: volume.id }), 0);
    await world.rest.detach(id);
    const digests = await world.replicaDigests(replaced);
    assert.equal(digests[0], digests[1]);

    // What it still holds is not wanted any more.
    await world.cluster.restart(other);
    await world.cluster.online(other);
    await world.rest.deleteVolume(volume.id);
  });

  it('a stale replica is taken only by who accepts the loss', async () => {
    const [volume, first] = await world.attachNew('lost', SIZE_BYTES);
    const [stale, lost] = nodesOf(volume) as [string, string];
    // Nowhere to move to meanwhile.
    const spare = world.cluster.nodes.find(({ id }) => !nodesOf(volume).includes(id))!.id;
    await world.cluster.kill(spare);
    await world.shell(`dd if=/dev/zero bs=1M count=4 | tr '\\0' a > /run/a`);
    await world.shell(`dd if=/dev/zero bs=1M count=4 | tr '\\0' b > /run/b`);
    await world.shell(`dd if=/run/a of=${first.device} bs=1M oflag=direct conv=fsync`);
    await world.cluster.kill(stale);
    await world.shell(`dd if=/run/b of=${first.device} bs=1M oflag=direct conv=fsync`);
    await world.rest.detach(first.id);
    await world.cluster.kill(lost);
    await world.cluster.restart(stale);
    await world.cluster.online(stale);

    assert.match(
      await world.rest.refusal('POST', '/v1/attachments', { volume: volume.id }),
      /BW_NO_IN_SYNC_REPLICA/,
    );
    const path = `/v1/volumes/${volume.id}/replicas/${stale}/promote`;
    assert.equal(await world.rest.refusal('POST', path, {}), '400 BW_INVALID_ARGUMENT');
    await world.rest.promote(volume.id, stale);
    const second = await world.rest.attach({ volume: volume.id });
    await world.shell(`cmp -n ${4 * MIB} ${second.device} /run/a`);
    await world.shell(`dd if=/run/a of=${second.device} bs=1M seek=4 oflag=direct conv=fsync`);

    // The other one has to give up what only it had.
    await world.cluster.restart(lost);
    await world.inSync([volume]);
    await world.shell(`cmp -n ${4 * MIB} ${second.device} /run/a`);
    await world.rest.detach(second.id);
    const digests = await world.replicaDigests(volume);
    assert.equal(digests[0], digests[1]);
    await world.rest.deleteVolume(volume.id);
    await world.cluster.restart(spare);
  });

  /** As a disk would: behind its node's back. */
  const rot = async (
    node: string,
    { id }: Volume,
    { offset, text }: { readonly offset: number; readonly text: string },
  ): Promise<void> => {
    const file = await open(world.cluster.dataFile(node, id), 'r+');
    await file.write(text, offset);
    await file.sync();
    await file.close();
  };

  it('what rotted on a disk is found by a scrub and repaired, under the device', async () => {
    const [volume, { id, device }] = await world.attachNew('rotten', SIZE_BYTES);
    await world.shell(`dd if=/dev/urandom of=${device} bs=1M count=16 oflag=direct conv=fsync`);
    // One that fell behind on a busy host would be rebuilt, and the rot written over.
    await world.inSync([volume]);
    const repaired = (): Promise<number> =>
      world.controlMetric('blockwire_control_regions_total', { result: 'repaired' });
    const before = await repaired();
    const [good] = await world.replicaDigests(volume);
    const rotten = volume.replicas[0]!.node;
    await rot(rotten, volume, { offset: 9 * MIB + 5, text: 'rot' });
    await world.rest.scrub(volume.id);
    const { scrub } = await eventually(
      () => world.rest.volume(volume.id),
      (now) => typeof now.scrub?.finishedAt === 'string',
      90_000,
    );
    for (const { node, mismatchedRegions, error } of scrub!.replicas) {
      assert.equal(error, null);
      // The scrub of the other one reads here too, and may be first: then it is the node that tells of it.
      assert.ok(mismatchedRegions <= (node === rotten ? 1 : 0), `${mismatchedRegions} at ${node}`);
    }
    await eventually(
      () => world.replicaDigests(volume),
      (now) => now.every((digest) => digest === good),
    );
    await eventually(repaired, (now) => now > before);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });

  it('a read of what rotted is answered by the other replica, and the rotten one repaired', async () => {
    const [volume, { id, device }] = await world.attachNew('read', SIZE_BYTES);
    await world.shell('dd if=/dev/urandom of=/run/written bs=1M count=16');
    await world.shell(`dd if=/run/written of=${device} bs=1M oflag=direct conv=fsync`);
    await world.inSync([volume]);
    const good = await world.replicaDigests(volume);
    assert.equal(good[0], good[1]);
    // On each replica another region, all of it: whichever is asked for a part of it meets the rot.
    const text = 'rot '.repeat(MIB / 4);
    for (const [index, { node }] of volume.replicas.entries()) {
      await rot(node, volume, { offset: (3 + 6 * index) * MIB, text });
    }
    await eventually(
      async () => {
        // Several at once, so that both replicas are asked.
        await world.shell(
          `seq 4 | xargs -P 4 -I{} sh -c 'dd if=${device} bs=1M count=16 iflag=direct status=none | cmp - /run/written'`,
        );
        return world.replicaDigests(volume);
      },
      (now) => now.every((digest, index) => digest === good[index]),
      120_000,
    );
    const counted = (name: string): Promise<number> => world.agentMetric(name, { volume: volume.id });
    assert.ok((await counted('blockwire_agent_read_errors_total')) >= 2);
    assert.equal(await counted('blockwire_agent_errors_total'), 0);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });
});
