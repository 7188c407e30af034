/** A storage node whose link drops: no packet comes back, no connection ends. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Load } from './load.ts';
import { longestStall } from './stall.ts';
import { eventually, type LabWorld, MIB, World } from './world.ts';

const SIZE_BYTES = 64 * MIB;
const SHORT_MS = 300;
/** An agent bears a second of silence; then the control plane decides, and all of it on a slow machine. */
const STALL_MS_MAX = 3000;

describe('a link that drops', () => {
  let world: LabWorld;
  before(async () => {
    // As an agent is by default: how long it bears silence decides how long an I/O stalls.
    world = await World.startLab({ lab: { nodes: 2 } });
  });
  after(() => world?.close());

  const givenUp = (id: string): Promise<unknown> =>
    eventually(
      () => world.rest.volume(id),
      ({ degraded }) => degraded,
    );

  it('under load, and comes back: the replica is given up, rebuilt, identical, and no I/O fails', async () => {
    const [volume, { id, device }] = await world.attachNew('cut', SIZE_BYTES);
    const load = Load.fio(world, device, SIZE_BYTES / 4);
    for (const { node } of volume.replicas) {
      await world.cluster.setLink(node, 'down');
      await givenUp(volume.id);
      await world.cluster.online(node, false);
      await world.cluster.setLink(node, 'up');
      await world.inSync([volume]);
    }
    assert.ok((await load.stop()) >= 1);
    assert.equal(await world.agentMetric('blockwire_agent_errors_total', { volume: volume.id }), 0);
    await world.rest.detach(id);
    const digests = await world.replicaDigests(volume);
    assert.equal(digests[0], digests[1]);
    await world.rest.deleteVolume(volume.id);
  });

  it('for a moment only: nobody is given up', async () => {
    const [volume, { id, device }] = await world.attachNew('flap', SIZE_BYTES);
    const load = Load.fio(world, device, SIZE_BYTES / 4);
    for (const { node } of volume.replicas) {
      await world.cluster.setLink(node, 'down');
      await sleep(SHORT_MS);
      await world.cluster.setLink(node, 'up');
      await sleep(2000);
    }
    await load.stop();
    const now = await world.rest.volume(volume.id);
    assert.equal(now.epoch, volume.epoch, JSON.stringify(now));
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });

  it('how long the longest I/O takes when a link goes silent', async (t) => {
    const [volume, { id, device }] = await world.attachNew('stall', 16 * MIB);
    const { node } = volume.replicas[0]!;
    const silent = await longestStall(world, device, {
      seconds: 20,
      happen: () => world.cluster.setLink(node, 'down'),
    });
    t.diagnostic(JSON.stringify(silent));
    assert.ok(Math.max(silent.readMs, silent.writeMs) < STALL_MS_MAX, JSON.stringify(silent));
    await world.cluster.setLink(node, 'up');
    await world.inSync([volume]);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });
});
