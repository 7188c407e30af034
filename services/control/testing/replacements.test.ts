/** Replicas that move: away from nodes that do not come back, and from nodes that are drained. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { NodeView } from '../routes/schemas.ts';
import { type Cluster, createVolume, startCluster } from './cluster.ts';
import type { FakeNode } from './fakes.ts';
import { attach, nodeOf, statesOf, takeOffline, volumeOf } from './views.ts';

const TIMING = { rebuildSweepMs: 20, pauseMsMin: 20 };

async function setUp(t: TestContext, options: { nodeCount?: number; replaceAfterMs?: number } = {}) {
  const { nodeCount = 3, replaceAfterMs = 100 } = options;
  const cluster = await startCluster(t, {
    nodeCount,
    agentCount: 1,
    timing: TIMING,
    policy: { replaceAfterMs },
  });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  return { cluster, volume, agent: cluster.agents[0]! };
}

async function ordered(cluster: Cluster, node: FakeNode, volumeId: string): Promise<void> {
  await cluster.until(() => node.rebuildsOf(volumeId).length > 0);
}

const drain = (cluster: Cluster, id: string, method = 'POST') =>
  cluster.request<NodeView>(method, `/v1/nodes/${id}/drain`);

test('a replica whose node stays away is replaced on another one; the old one is deleted when it is back', async (t) => {
  const { cluster, volume } = await setUp(t);
  const [, old, other] = cluster.nodes;
  await takeOffline(cluster, old!);
  await attach(cluster, { volume: volume.id });
  await ordered(cluster, other!, volume.id);
  assert.equal(other!.rebuildsOf(volume.id)[0]?.sinceEpoch, 0);
  assert.equal(other!.replicas.get(volume.id)?.sizeBytes, volume.sizeBytes);
  const during = await volumeOf(cluster, volume.id);
  assert.deepEqual(
    during.replicas.map(({ node, state, replaces }) => [node, state, replaces]),
    [
      ['node-1', 'inSync', null],
      ['node-2', 'stale', null],
      ['node-3', 'rebuilding', 'node-2'],
    ],
  );
  assert.equal((await nodeOf(cluster, 'node-3')).freeBytes, 2 ** 30 - volume.sizeBytes);

  await other!.endRebuild(volume.id);
  await cluster.until(async () => !(await volumeOf(cluster, volume.id)).degraded);
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'inSync', 'node-3': 'inSync' });
  assert.ok(old!.replicas.has(volume.id));
  await old!.connect(cluster.control.grpc);
  await cluster.until(() => !old!.replicas.has(volume.id));
  await cluster.until(async () => (await nodeOf(cluster, 'node-2')).freeBytes === 2 ** 30);
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'inSync', 'node-3': 'inSync' });
});

test('a replacement goes on after a restart of the control plane, and the old replica is deleted after another', async (t) => {
  const { cluster, volume } = await setUp(t);
  const [source, old, other] = cluster.nodes;
  const restart = async (): Promise<void> => {
    await cluster.restart();
    for (const member of [source!, other!, ...cluster.agents]) await member.connect(cluster.control.grpc);
  };
  await takeOffline(cluster, old!);
  await attach(cluster, { volume: volume.id });
  await ordered(cluster, other!, volume.id);
  await restart();
  await cluster.until(() => other!.rebuildsOf(volume.id).length > 1);
  await other!.endRebuild(volume.id);
  await cluster.until(async () => !(await volumeOf(cluster, volume.id)).degraded);
  await restart();
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'inSync', 'node-3': 'inSync' });
  assert.ok(old!.replicas.has(volume.id));
  await old!.connect(cluster.control.grpc);
  await cluster.until(() => !old!.replicas.has(volume.id));
});

test('a volume that nobody has attached is made whole too', async (t) => {
  const { cluster, volume } = await setUp(t);
  await takeOffline(cluster, cluster.nodes[1]!);
  await ordered(cluster, cluster.nodes[2]!, volume.id);
  await cluster.nodes[2]!.endRebuild(volume.id);
  await cluster.until(async () => !(await volumeOf(cluster, volume.id)).degraded);
});

test('a node that comes back before its replacement is ready keeps its replica', async (t) => {
  const { cluster, volume } = await setUp(t);
  const [, old, other] = cluster.nodes;
  await takeOffline(cluster, old!);
  await attach(cluster, { volume: volume.id });
  await ordered(cluster, other!, volume.id);
  await old!.connect(cluster.control.grpc);
  await ordered(cluster, old!, volume.id);
  await old!.endRebuild(volume.id);
  await cluster.until(() => !other!.replicas.has(volume.id));
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'inSync', 'node-2': 'inSync' });
  await cluster.until(async () => (await nodeOf(cluster, 'node-3')).freeBytes === 2 ** 30);
});

test('no replica is replaced before its time, nor when no other is there to copy from', async (t) => {
  const { cluster, volume } = await setUp(t, { replaceAfterMs: 3_600_000 });
  await takeOffline(cluster, cluster.nodes[1]!);
  await attach(cluster, { volume: volume.id });
  await new Promise((resolve) => setTimeout(resolve, 150));
  assert.equal((await volumeOf(cluster, volume.id)).replicas.length, 2);

  const lonely = await setUp(t);
  for (const node of lonely.cluster.nodes.slice(0, 2)) await takeOffline(lonely.cluster, node);
  await new Promise((resolve) => setTimeout(resolve, 250));
  assert.equal((await volumeOf(lonely.cluster, lonely.volume.id)).replicas.length, 2);
});

test('a drained node is emptied under a live writer, which leaves it before the replica goes', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const [first, , other] = cluster.nodes;
  await attach(cluster, { volume: volume.id });
  const answer = await drain(cluster, 'node-1');
  assert.deepEqual([answer.status, answer.body.draining, answer.body.replicas], [200, true, 1]);
  await ordered(cluster, other!, volume.id);
  assert.equal((await statesOf(cluster, volume.id))['node-1'], 'inSync');

  let epochWhenDeleted = 0;
  first!.react = ({ action }) => {
    const told = agent.commands.flatMap(({ membership }) => (membership ? [membership.membership!] : []));
    const state = told.at(-1)?.replicas.find(({ nodeId }) => nodeId === 'node-1')?.state;
    if (action === 'deleteReplica') {
      assert.notEqual(state, 'REPLICA_STATE_IN_SYNC');
      epochWhenDeleted = told.at(-1)!.epoch;
    }
    return undefined;
  };
  await other!.endRebuild(volume.id);
  await cluster.until(() => !first!.replicas.has(volume.id));
  const after = await volumeOf(cluster, volume.id);
  assert.equal(epochWhenDeleted, after.epoch);
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-2': 'inSync', 'node-3': 'inSync' });
  assert.equal((await nodeOf(cluster, 'node-1')).replicas, 0);
});

test('a drained node takes no replica, also after it has registered again, until it is kept', async (t) => {
  const { cluster } = await setUp(t, { nodeCount: 2 });
  await drain(cluster, 'node-2');
  const refused = await createVolume(cluster, { name: 'more' });
  assert.deepEqual(
    [refused.status, (refused.body as unknown as { code: string }).code],
    [409, 'BW_NOT_ENOUGH_NODES'],
  );
  await cluster.restart();
  await cluster.reconnectAll();
  assert.equal((await nodeOf(cluster, 'node-2')).draining, true);
  assert.equal((await createVolume(cluster, { name: 'more' })).status, 409);
  assert.equal((await drain(cluster, 'node-2', 'DELETE')).body.draining, false);
  assert.equal((await createVolume(cluster, { name: 'more' })).status, 201);
  const unknown = await cluster.request('POST', '/v1/nodes/node-9/drain');
  assert.deepEqual([unknown.status, unknown.body.code], [404, 'BW_NODE_NOT_FOUND']);
});

test('a drain that is taken back leaves everything as it was', async (t) => {
  const { cluster, volume } = await setUp(t);
  const other = cluster.nodes[2]!;
  await drain(cluster, 'node-1');
  await ordered(cluster, other, volume.id);
  await drain(cluster, 'node-1', 'DELETE');
  await cluster.until(() => !other.replicas.has(volume.id));
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'inSync', 'node-2': 'inSync' });
});

test('a drain goes on after a restart of the control plane', async (t) => {
  const { cluster, volume } = await setUp(t);
  const [first, , other] = cluster.nodes;
  await attach(cluster, { volume: volume.id });
  await drain(cluster, 'node-1');
  await ordered(cluster, other!, volume.id);
  await cluster.restart();
  await cluster.reconnectAll();
  await cluster.until(() => other!.rebuildsOf(volume.id).length > 1);
  await other!.endRebuild(volume.id);
  await cluster.until(() => !first!.replicas.has(volume.id));
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-2': 'inSync', 'node-3': 'inSync' });
});
