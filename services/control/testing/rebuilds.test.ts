/** Rebuilds as nodes, agents and users see them: what is ordered, when, and what becomes of it. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { parseExportName } from '@blockwire/shared/export-name.ts';
import { type Cluster, createVolume, startCluster } from './cluster.ts';
import type { FakeNode } from './fakes.ts';
import { attach, statesOf, takeOffline, volumeOf } from './views.ts';

const SWEEP = { rebuildSweepMs: 20, pauseMsMin: 20 };

/** A volume with a writer that has lost its replica on node-2. */
async function setUp(t: TestContext, options: Parameters<typeof startCluster>[1] = {}) {
  const cluster = await startCluster(t, { agentCount: 1, timing: SWEEP, ...options });
  const { body: volume } = await createVolume(cluster, { name: 'data', replicas: cluster.nodes.length });
  const { generation } = await attach(cluster, { volume: volume.id });
  const lose = (volumeId = volume.id, nodeId = 'node-2') =>
    cluster.agents[0]!.reportReplicaLost({ volumeId, generation, epoch: 1, nodeId, reason: 'reset' });
  return { cluster, volume, agent: cluster.agents[0]!, lose };
}

async function ordered(cluster: Cluster, node: FakeNode, volumeId: string, count = 1): Promise<void> {
  await cluster.until(() => node.rebuildsOf(volumeId).length >= count);
}

test('a lost replica is rebuilt without hands: installed, behind the writer’s barrier, in sync again', async (t) => {
  const { cluster, volume, agent, lose } = await setUp(t);
  const [source, target] = cluster.nodes;
  await lose();
  await ordered(cluster, target!, volume.id);

  const rebuild = target!.rebuildsOf(volume.id)[0]!;
  assert.deepEqual([rebuild.sinceEpoch, rebuild.joinedEpoch], [2, 3]);
  assert.equal(rebuild.bytesPerSecond, 200 * 2 ** 20);
  const { sourceNodeId, sourceAddress, generation, epoch, exportName } = rebuild.order!;
  assert.deepEqual(
    [sourceNodeId, sourceAddress, generation, epoch],
    ['node-1', source!.registration.peerAddress, 2, 3],
  );
  assert.equal(parseExportName(exportName).volumeId, volume.id);
  const installed = target!.commandsOf('installEpoch').at(-1)!.installEpoch!;
  assert.deepEqual(
    [installed.epoch, installed.role, installed.joinedEpoch],
    [3, 'REPLICA_STATE_REBUILDING', 3],
  );
  const told = agent.commands.at(-1)!.membership!.membership!;
  assert.deepEqual(
    [told.epoch, told.replicas.map(({ state, joinedEpoch }) => [state, joinedEpoch])],
    [
      3,
      [
        ['REPLICA_STATE_IN_SYNC', 1],
        ['REPLICA_STATE_REBUILDING', 3],
      ],
    ], // prettier-ignore
  );

  await target!.heartbeat([{ volumeId: volume.id, joinedEpoch: 3, copiedBytes: 5, totalBytes: 9 }]);
  assert.deepEqual((await volumeOf(cluster, volume.id)).replicas[1]?.rebuild, {
    copiedBytes: 5,
    totalBytes: 9,
  });
  const metrics = await (await fetch(`${cluster.control.rest}/metrics`)).text();
  assert.match(metrics, new RegExp(`rebuild_copied_bytes{volume="${volume.id}",node="node-2"} 5`));
  assert.match(metrics, /events_total{type="replica.rebuilding"} 1/);

  await target!.endRebuild(volume.id);
  const after = await volumeOf(cluster, volume.id);
  assert.deepEqual([after.degraded, after.epoch, after.replicas[1]?.rebuild], [false, 4, null]);
  await cluster.until(() => agent.commands.at(-1)?.membership?.membership?.epoch === 4);
  assert.equal(target!.rebuildsOf(volume.id).length, 1);
});

test('a volume that nobody has attached is rebuilt too', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1, timing: SWEEP });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const [, target] = cluster.nodes;
  await takeOffline(cluster, target!);
  const { id } = await attach(cluster, { volume: volume.id });
  await cluster.request('DELETE', `/v1/attachments/${id}`);
  await target!.connect(cluster.control.grpc);
  await ordered(cluster, target!, volume.id);
  await target!.endRebuild(volume.id);
  assert.equal((await volumeOf(cluster, volume.id)).degraded, false);
});

test('a node that cannot rebuild is asked again after pauses that grow', async (t) => {
  const { cluster, volume, lose } = await setUp(t, { timing: { rebuildSweepMs: 10, pauseMsMin: 50 } });
  const target = cluster.nodes[1]!;
  target.react = ({ action }) => (action === 'rebuild' ? 'BW_PROTOCOL' : undefined);
  const beganAt = Date.now();
  await lose();
  await ordered(cluster, target, volume.id, 4);
  // 50 + 100 + 200
  assert.ok(Date.now() - beganAt >= 340, `${Date.now() - beganAt} ms`);
  target.react = () => undefined;
  await ordered(cluster, target, volume.id, 5);
  await cluster.until(async () => (await statesOf(cluster, volume.id))['node-2'] === 'rebuilding');
});

test('a rebuild that failed is tried from another source', async (t) => {
  const { cluster, volume, lose } = await setUp(t, { nodeCount: 3 });
  const target = cluster.nodes[1]!;
  await lose();
  await ordered(cluster, target, volume.id);
  const [first] = target.rebuildsOf(volume.id);
  await target.endRebuild(volume.id, 'the source does not answer');
  await ordered(cluster, target, volume.id, 2);
  const [, second] = target.rebuildsOf(volume.id);
  assert.deepEqual([first, second].map((rebuild) => rebuild?.order?.sourceNodeId).sort(), [
    'node-1',
    'node-3',
  ]);
  assert.equal(second?.sinceEpoch, first?.sinceEpoch);
  assert.ok(second!.joinedEpoch > first!.joinedEpoch);
});

test('a node takes part in no more rebuilds at once than it may', async (t) => {
  const cluster = await startCluster(t, { timing: SWEEP, policy: { rebuildsPerNodeMax: 1 }, agentCount: 1 });
  const [, target] = cluster.nodes;
  const ids: string[] = [];
  await takeOffline(cluster, target!).catch(() => {});
  await target!.connect(cluster.control.grpc);
  for (const name of ['a', 'b', 'c']) ids.push((await createVolume(cluster, { name })).body.id);
  await takeOffline(cluster, target!);
  for (const volume of ids) await attach(cluster, { volume });
  await target!.connect(cluster.control.grpc);
  const running = () => target!.commandsOf('rebuild').map(({ rebuild }) => rebuild!.order!.volumeId);
  for (let count = 1; count <= 3; count++) {
    await cluster.until(() => running().length >= count);
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.equal(running().length, count);
    await target!.endRebuild(running().at(-1)!);
  }
  assert.deepEqual(running().sort(), ids.sort());
});

test('a replica that missed a resize has the size before it is rebuilt', async (t) => {
  const { cluster, volume } = await setUp(t);
  const [, target] = cluster.nodes;
  const agent = cluster.agents[0]!;
  await takeOffline(cluster, target!);
  const { generation } = await volumeOf(cluster, volume.id);
  const lost = { volumeId: volume.id, generation, epoch: 1, nodeId: 'node-2', reason: 'reset' };
  await agent.reportReplicaLost(lost);
  const sizeBytes = 3 * 2 ** 20;
  assert.equal((await cluster.request('PATCH', `/v1/volumes/${volume.id}`, { sizeBytes })).status, 200);
  assert.equal(target!.replicas.get(volume.id)?.sizeBytes, volume.sizeBytes);
  await target!.connect(cluster.control.grpc);
  await ordered(cluster, target!, volume.id);
  assert.equal(target!.replicas.get(volume.id)?.sizeBytes, sizeBytes);
  const order = target!.commands.map(({ action }) => action).slice(-3);
  assert.deepEqual(order, ['resizeReplica', 'installEpoch', 'rebuild']);
});

test('a node that came back without its replica gets a new one, and everything is copied', async (t) => {
  const { cluster, volume, lose } = await setUp(t);
  const target = cluster.nodes[1]!;
  target.replicas.delete(volume.id);
  target.react = (command) => {
    const isAbout = command.resizeReplica !== undefined || command.installEpoch !== undefined;
    return isAbout && !target.replicas.has(volume.id) ? 'BW_REPLICA_NOT_FOUND' : undefined;
  };
  await lose();
  await ordered(cluster, target, volume.id);
  assert.equal(target.rebuildsOf(volume.id)[0]?.sinceEpoch, 0);
  assert.equal(target.replicas.get(volume.id)?.sizeBytes, volume.sizeBytes);
});

test('a restart of the control plane or of the node orders the same rebuild again', async (t) => {
  const { cluster, volume, lose } = await setUp(t);
  const target = cluster.nodes[1]!;
  await lose();
  await ordered(cluster, target, volume.id);
  await cluster.restart();
  await cluster.reconnectAll();
  await ordered(cluster, target, volume.id, 2);
  await target.connect(cluster.control.grpc);
  await ordered(cluster, target, volume.id, 3);
  const [first, ...others] = target.rebuildsOf(volume.id);
  for (const { joinedEpoch, sinceEpoch } of others) {
    assert.deepEqual([joinedEpoch, sinceEpoch], [first!.joinedEpoch, first!.sinceEpoch]);
  }
  await target.endRebuild(volume.id);
  assert.equal((await volumeOf(cluster, volume.id)).degraded, false);
  // Repeated, as by a node that did not get the answer.
  await target.endRebuild(volume.id);
});
