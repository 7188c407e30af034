/** Scrubs and repairs: what nodes are told, and what users are shown. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { VolumeView } from '../routes/schemas.ts';
import { type Cluster, createVolume, type Failure, startCluster } from './cluster.ts';
import type { FakeNode } from './fakes.ts';
import { attach, takeOffline, volumeOf } from './views.ts';

const TIMING = { rebuildSweepMs: 20, pauseMsMin: 20 };

async function setUp(t: TestContext, options: Parameters<typeof startCluster>[1] = {}) {
  const cluster = await startCluster(t, { agentCount: 1, timing: TIMING, ...options });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const [first, second] = cluster.nodes;
  return { cluster, volume, first: first!, second: second! };
}

const scrub = (cluster: Cluster, id: string) =>
  cluster.request<VolumeView & Failure>('POST', `/v1/volumes/${id}/scrub`);

const scrubs = (node: FakeNode) => node.commandsOf('scrub').map((command) => command.scrub!);
const repairs = (node: FakeNode) => node.commandsOf('repair').map((command) => command.repair!);

const clean = { scannedBytes: 2 ** 20, mismatchedRegions: 0, repairedRegions: 0, error: '' };

test('a scrub is ordered at every replica, against the other one, and its result shown', async (t) => {
  const { cluster, volume, first, second } = await setUp(t);
  const { status, body } = await scrub(cluster, volume.id);
  assert.deepEqual([status, body.scrub?.finishedAt], [202, null]);
  await cluster.until(() => scrubs(first).length + scrubs(second).length === 2);
  const [order] = scrubs(first);
  assert.deepEqual([order!.order!.sourceNodeId, order!.bytesPerSecond], ['node-2', 50 * 2 ** 20]);
  assert.equal((await scrub(cluster, volume.id)).body.code, 'BW_CONFLICT');

  await first.reportScrub({ volumeId: volume.id, ...clean, mismatchedRegions: 3, repairedRegions: 2 });
  assert.equal((await volumeOf(cluster, volume.id)).scrub?.finishedAt, null);
  await second.reportScrub({ volumeId: volume.id, ...clean });
  const result = (await volumeOf(cluster, volume.id)).scrub;
  assert.ok(Date.parse(result!.finishedAt!) >= Date.parse(result!.startedAt));
  assert.deepEqual(result!.replicas, [
    { node: 'node-1', scannedBytes: 2 ** 20, mismatchedRegions: 3, repairedRegions: 2, error: null },
    { node: 'node-2', scannedBytes: 2 ** 20, mismatchedRegions: 0, repairedRegions: 0, error: null },
  ]);
  const metrics = await (await fetch(`${cluster.control.rest}/metrics`)).text();
  assert.match(metrics, /regions_total{result="mismatched"} 3/);
  assert.match(metrics, /events_total{type="volume.scrubbed"} 1/);
  // Late, or repeated.
  await first.reportScrub({ volumeId: volume.id, ...clean });
});

test('volumes are scrubbed at their interval, a node for one at a time', async (t) => {
  const { cluster, volume, first, second } = await setUp(t, { policy: { scrubIntervalMs: 1 } });
  const { body: other } = await createVolume(cluster, { name: 'other' });
  const ids = () => scrubs(first).map(({ order }) => order!.volumeId);
  const seen = new Set<string>();
  for (let count = 1; seen.size < 2; count++) {
    await cluster.until(() => ids().length >= count && scrubs(second).length >= count);
    await new Promise((resolve) => setTimeout(resolve, 60));
    assert.equal(ids().length, count);
    const id = ids().at(-1)!;
    seen.add(id);
    for (const node of [first, second]) await node.reportScrub({ volumeId: id, ...clean });
  }
  assert.deepEqual([...seen].sort(), [volume.id, other.id].sort());
});

test('a scrub goes on after a restart of the control plane or of a node', async (t) => {
  const { cluster, volume, first } = await setUp(t);
  await scrub(cluster, volume.id);
  await cluster.until(() => scrubs(first).length === 1);
  await cluster.restart();
  await cluster.reconnectAll();
  await cluster.until(() => scrubs(first).length === 2);
  await first.connect(cluster.control.grpc);
  await cluster.until(() => scrubs(first).length === 3);
});

test('a scrub says what it could not compare, and without two replicas there is none', async (t) => {
  const { cluster, volume, first, second } = await setUp(t);
  const { generation } = await attach(cluster, { volume: volume.id });
  second.react = ({ action }) => (action === 'scrub' ? 'BW_REPLICA_DAMAGED' : undefined);
  await scrub(cluster, volume.id);
  await cluster.until(() => scrubs(first).length === 1);
  second.react = ({ action }) => (action === 'rebuild' ? 'BW_PROTOCOL' : undefined);
  const lost = { volumeId: volume.id, generation, epoch: 1, nodeId: 'node-2', reason: '' };
  await cluster.agents[0]!.reportReplicaLost(lost);
  await cluster.until(async () => (await volumeOf(cluster, volume.id)).scrub?.finishedAt !== null);
  const { replicas } = (await volumeOf(cluster, volume.id)).scrub!;
  assert.match(replicas[0]!.error!, /not in sync/);
  assert.match(replicas[1]!.error!, /the fake says so/);
  await takeOffline(cluster, second);
  const refused = await scrub(cluster, volume.id);
  assert.deepEqual([refused.status, refused.body.code], [409, 'BW_CONFLICT']);
  assert.equal((await scrub(cluster, 'vol-000000000000')).body.code, 'BW_VOLUME_NOT_FOUND');
});

test('damage is repaired from the other replica, again until it works', async (t) => {
  const { cluster, volume, first } = await setUp(t);
  first.react = ({ action }) => (action === 'repair' ? 'BW_PEER_UNREACHABLE' : undefined);
  await first.reportDamage(volume.id, [7, 0, 7]);
  await cluster.until(() => repairs(first).length >= 2);
  first.react = () => undefined;
  const count = repairs(first).length;
  await cluster.until(() => repairs(first).length > count);
  const { order, regions } = repairs(first).at(-1)!;
  assert.deepEqual([order!.sourceNodeId, order!.volumeId], ['node-2', volume.id]);
  assert.deepEqual([...regions].sort(), [0, 7]);
  const total = repairs(first).length;
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(repairs(first).length, total);
});

test('damage waits for a replica to repair from; of what nobody reads or knows none is repaired', async (t) => {
  const { cluster, volume, first, second } = await setUp(t);
  await takeOffline(cluster, second);
  await first.reportDamage(volume.id, [1]);
  await first.reportDamage('vol-000000000000', [1]);
  await new Promise((resolve) => setTimeout(resolve, 80));
  assert.equal(repairs(first).length, 0);
  await second.connect(cluster.control.grpc);
  await cluster.until(() => repairs(first).length === 1);
  await assert.rejects(first.reportDamage('../x', [1]), { code: 'BW_INVALID_ARGUMENT' });
});
