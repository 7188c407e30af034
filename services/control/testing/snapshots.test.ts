/** Snapshots and clones over REST: what nodes and agents are told, in which order, and what is left when it fails. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { parseExportName } from '@blockwire/shared/export-name.ts';
import type { SnapshotView, VolumeView } from '../routes/schemas.ts';
import { type Answer, type Cluster, createVolume, type Failure, startCluster } from './cluster.ts';
import { attach, nodeOf, statesOf, takeOffline, volumeOf } from './views.ts';

async function setUp(t: TestContext, options: Parameters<typeof startCluster>[1] = {}) {
  const cluster = await startCluster(t, { agentCount: 1, ...options });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  return { cluster, volume, agent: cluster.agents[0]! };
}

function take(
  cluster: Cluster,
  volumeId: string,
  name = 'monday',
  headers: Record<string, string> = {},
): Promise<Answer<SnapshotView & Failure>> {
  return cluster.request('POST', `/v1/volumes/${volumeId}/snapshots`, { name }, headers);
}

async function list(cluster: Cluster, volumeId: string): Promise<SnapshotView[]> {
  return (await cluster.request<SnapshotView[]>('GET', `/v1/volumes/${volumeId}/snapshots`)).body;
}

const has = (cluster: Cluster, name: string): boolean[] =>
  cluster.nodes.map(({ snapshots }) => snapshots.has(name));

test('a snapshot of an attached volume is taken while its writes are held', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const { id: attachmentId } = await attach(cluster, { volume: volume.id });
  const heldWhenTaken: (string | undefined)[] = [];
  for (const node of cluster.nodes) {
    node.react = ({ action }) => {
      if (action === 'createSnapshot') heldWhenTaken.push(agent.commands.at(-1)?.action);
      return undefined;
    };
  }
  const { status, body } = await take(cluster, volume.id);
  assert.equal(status, 201);
  assert.deepEqual(heldWhenTaken, ['holdWrites', 'holdWrites']);
  assert.deepEqual(agent.commands.at(-2)?.holdWrites, { attachmentId, holdMsMax: 5000 });
  assert.deepEqual(agent.commands.at(-1)?.releaseWrites, { attachmentId });
  const { replicas, createdAt, ...rest } = body;
  assert.deepEqual(rest, {
    ...{ volume: volume.id, name: 'monday', state: 'ready', sizeBytes: 2 ** 20, epoch: 1 },
    missing: [],
  } as unknown);
  assert.ok(Date.parse(createdAt) > 0);
  assert.deepEqual(
    replicas.map(({ node }) => node),
    ['node-1', 'node-2'],
  ); // prettier-ignore
  const { volumeId, snapshot, capability } = parseExportName(
    decodeURIComponent(new URL(replicas[0]!.uri).pathname.slice(1)),
  );
  assert.deepEqual([volumeId, snapshot], [volume.id, 'monday']);
  const claims = JSON.parse(Buffer.from(capability!.split('.')[0]!, 'base64url').toString()) as { m: string };
  assert.equal(claims.m, 'reader');
  assert.deepEqual(await list(cluster, volume.id), [body]);
});

test('without a writer the replicas are made equal first; one that may still write is kept out', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  assert.equal((await take(cluster, volume.id)).status, 201);
  const actions = cluster.nodes.map(({ commands }) => commands.map(({ action }) => action));
  assert.deepEqual(actions[0]?.slice(1), ['installEpoch', 'createSnapshot']);
  assert.deepEqual(actions[1]?.slice(1), ['installEpoch', 'reconcile', 'createSnapshot']);
  assert.equal((await volumeOf(cluster, volume.id)).generation, 1);

  const { id } = await attach(cluster, { volume: volume.id });
  agent.react = ({ action }) => (action === 'detach' ? 'BW_KERNEL' : undefined);
  await cluster.request('DELETE', `/v1/attachments/${id}?force=true`);
  assert.equal((await take(cluster, volume.id, 'tuesday')).status, 201);
  assert.equal((await volumeOf(cluster, volume.id)).generation, 3);
});

test('a replica that is not in sync lacks the snapshot, and the record says so', async (t) => {
  const { cluster, volume } = await setUp(t);
  await takeOffline(cluster, cluster.nodes[1]!);
  await attach(cluster, { volume: volume.id });
  const { body } = await take(cluster, volume.id);
  assert.deepEqual([body.replicas.map(({ node }) => node), body.missing], [['node-1'], ['node-2']]);
});

test('a hold that ended by itself, or a slow node: the snapshot is taken back', async (t) => {
  const { cluster, volume, agent } = await setUp(t, { timing: { snapshotHoldMs: 80 } });
  await attach(cluster, { volume: volume.id });
  const expectNothing = async (answer: Answer<Failure>, status: number, code: string): Promise<void> => {
    assert.deepEqual([answer.status, answer.body.code], [status, code]);
    await cluster.until(async () => (await list(cluster, volume.id)).length === 0);
    assert.deepEqual(has(cluster, `${volume.id}@monday`), [false, false]);
  };
  agent.react = ({ action }) => (action === 'releaseWrites' ? 'BW_TIMEOUT' : undefined);
  await expectNothing(await take(cluster, volume.id), 504, 'BW_TIMEOUT');
  agent.react = ({ action }) => (action === 'holdWrites' ? 'never' : undefined);
  await expectNothing(await take(cluster, volume.id), 504, 'BW_TIMEOUT');
  assert.equal(agent.commands.at(-1)?.action, 'releaseWrites');
  agent.react = () => undefined;
  const [, slow] = cluster.nodes;
  slow!.react = ({ action }) => (action === 'createSnapshot' ? 'never' : undefined);
  await expectNothing(await take(cluster, volume.id), 504, 'BW_TIMEOUT');
  slow!.react = ({ action }) => (action === 'createSnapshot' ? 'BW_SNAPSHOT_UNSUPPORTED' : undefined);
  await expectNothing(await take(cluster, volume.id), 501, 'BW_SNAPSHOT_UNSUPPORTED');
  assert.equal(agent.commands.at(-1)?.action, 'releaseWrites');
  slow!.react = () => undefined;
  assert.equal((await take(cluster, volume.id)).status, 201);
});

test('a replica that is lost while the snapshot is taken is left out of it', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const { generation } = await attach(cluster, { volume: volume.id });
  const [, lost] = cluster.nodes;
  lost!.react = ({ action }) => (action === 'createSnapshot' ? 'never' : undefined);
  const taking = take(cluster, volume.id);
  await cluster.until(() => lost!.commandsOf('createSnapshot').length > 0);
  await agent.reportReplicaLost({ volumeId: volume.id, generation, epoch: 1, nodeId: 'node-2', reason: '' });
  await lost!.disconnect();
  const { status, body } = await taking;
  assert.equal(status, 201);
  assert.deepEqual([body.replicas.map(({ node }) => node), body.missing], [['node-1'], ['node-2']]);
});

test('a writer that changes meanwhile spoils the snapshot', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const { id } = await attach(cluster, { volume: volume.id });
  let isResumed = false;
  agent.react = ({ action }) => (action === 'releaseWrites' && !isResumed ? 'never' : undefined);
  const taking = take(cluster, volume.id);
  await cluster.until(() => agent.commands.at(-1)?.action === 'releaseWrites');
  await agent.resume(id);
  isResumed = true;
  await agent.connect(cluster.control.grpc);
  const { status } = await taking;
  assert.equal(status, 503);
  await cluster.until(async () => (await list(cluster, volume.id)).length === 0);
});

test('names are taken once, bad ones refused, and what is not there is not found', async (t) => {
  const { cluster, volume } = await setUp(t);
  const headers = { 'idempotency-key': 'snapshot-1' };
  const first = await take(cluster, volume.id, 'monday', headers);
  assert.deepEqual((await take(cluster, volume.id, 'monday', headers)).body, first.body);
  const { body: other } = await createVolume(cluster, { name: 'other' });
  assert.equal((await take(cluster, other.id, 'monday', headers)).body.code, 'BW_IDEMPOTENCY_MISMATCH');
  const path = `/v1/volumes/${volume.id}/snapshots`;
  for (const [method, url, body, status, code] of [
    ['POST', path, { name: 'monday' }, 409, 'BW_SNAPSHOT_NAME_TAKEN'],
    ['POST', path, { name: '../x' }, 400, 'BW_INVALID_ARGUMENT'],
    ['POST', path, {}, 400, 'BW_INVALID_ARGUMENT'],
    ['POST', '/v1/volumes/vol-000000000000/snapshots', { name: 'a' }, 404, 'BW_VOLUME_NOT_FOUND'],
    ['GET', '/v1/volumes/vol-000000000000/snapshots', undefined, 404, 'BW_VOLUME_NOT_FOUND'],
    ['DELETE', `${path}/friday`, undefined, 404, 'BW_SNAPSHOT_NOT_FOUND'],
  ] as const) {
    const answer = await cluster.request(method, url, body);
    assert.deepEqual([answer.status, answer.body.code], [status, code], `${method} ${url}`);
  }
});

test('a deleted snapshot goes everywhere, where a node is offline when it is back', async (t) => {
  const { cluster, volume } = await setUp(t);
  await take(cluster, volume.id);
  const [, away] = cluster.nodes;
  await takeOffline(cluster, away!);
  const path = `/v1/volumes/${volume.id}/snapshots/monday`;
  assert.equal((await cluster.request('DELETE', path)).status, 204);
  assert.deepEqual(has(cluster, `${volume.id}@monday`), [false, true]);
  assert.equal((await cluster.request('DELETE', path)).status, 404);
  await away!.connect(cluster.control.grpc);
  await cluster.until(async () => (await list(cluster, volume.id)).length === 0);
  assert.deepEqual(has(cluster, `${volume.id}@monday`), [false, false]);
});

test('a volume with snapshots is deleted only by who says so', async (t) => {
  const { cluster, volume } = await setUp(t);
  await take(cluster, volume.id);
  const path = `/v1/volumes/${volume.id}`;
  const refused = await cluster.request('DELETE', path);
  assert.deepEqual([refused.status, refused.body.code], [409, 'BW_VOLUME_HAS_SNAPSHOTS']);
  assert.deepEqual(refused.body.details, { volume: volume.id, snapshots: ['monday'] });
  assert.equal((await cluster.request('DELETE', `${path}?snapshots=keep`)).status, 400);
  assert.equal((await cluster.request('DELETE', `${path}?snapshots=delete`)).status, 204);
  for (const node of cluster.nodes) assert.equal(node.replicas.size, 0);
});

test('a clone is made on the nodes that have the snapshot, of its size or larger', async (t) => {
  const { cluster, volume } = await setUp(t, { nodeCount: 3 });
  await take(cluster, volume.id);
  const clone = (
    body: Record<string, unknown>,
    source: unknown = { volume: volume.id, snapshot: 'monday' },
  ) => cluster.request<VolumeView & Failure>('POST', '/v1/volumes', { source, ...body });
  const { status, body } = await clone({ name: 'copy' });
  assert.equal(status, 201);
  assert.deepEqual([body.sizeBytes, body.generation, body.state], [2 ** 20, 1, 'available']);
  assert.deepEqual(await statesOf(cluster, body.id), { 'node-1': 'inSync', 'node-2': 'inSync' });
  const told = cluster.nodes[0]!.commandsOf('cloneReplica')[0]?.cloneReplica;
  assert.deepEqual(
    { ...told },
    {
      ...{ sourceVolumeId: volume.id, snapshot: 'monday', volumeId: body.id, generation: 1, epoch: 1 },
    },
  );
  const large = await clone({ name: 'large', sizeBytes: 2 ** 22, replicas: 1 });
  assert.equal(large.body.replicas.length, 1);
  assert.equal(cluster.nodes[0]!.replicas.get(large.body.id)?.sizeBytes, 2 ** 22);
  const source = { volume: volume.id, snapshot: 'monday' };
  for (const [extra, from, code] of [
    [{ name: 'small', sizeBytes: 2 ** 20 - 4096 }, source, 'BW_INVALID_ARGUMENT'],
    [{ name: 'many', replicas: 3 }, source, 'BW_NOT_ENOUGH_NODES'],
    [{ name: 'none' }, { ...source, snapshot: 'friday' }, 'BW_SNAPSHOT_NOT_FOUND'],
    [{ name: 'none' }, { ...source, volume: 'vol-000000000000' }, 'BW_VOLUME_NOT_FOUND'],
    [{ name: 'none' }, { volume: volume.id }, 'BW_INVALID_ARGUMENT'],
  ] as const) {
    assert.equal((await clone(extra, from)).body.code, code, JSON.stringify(extra));
  }
  cluster.nodes[1]!.react = ({ action }) => (action === 'cloneReplica' ? 'BW_REPLICA_NOT_FOUND' : undefined);
  assert.equal((await clone({ name: 'broken' })).body.code, 'BW_REPLICA_NOT_FOUND');
  await cluster.until(() => cluster.nodes[0]!.replicas.size === 3);
});

test('a control plane that dies while a snapshot is taken gives it up when it is back', async (t) => {
  const { cluster, volume } = await setUp(t);
  await attach(cluster, { volume: volume.id });
  const [first, slow] = cluster.nodes;
  slow!.react = ({ action }) => (action === 'createSnapshot' ? 'never' : undefined);
  const taking = take(cluster, volume.id).catch(() => null);
  await cluster.until(() => first!.snapshots.size > 0 && slow!.commandsOf('createSnapshot').length > 0);
  await cluster.restart();
  await taking;
  slow!.react = () => undefined;
  await cluster.reconnectAll();
  await cluster.until(async () => (await list(cluster, volume.id)).length === 0);
  assert.deepEqual(has(cluster, `${volume.id}@monday`), [false, false]);
  assert.equal((await take(cluster, volume.id)).status, 201);
});

test('a node that has the only copy of a snapshot is not emptied of it', async (t) => {
  const timing = { rebuildSweepMs: 20, pauseMsMin: 20 };
  const { cluster, volume } = await setUp(t, { nodeCount: 3, timing });
  await takeOffline(cluster, cluster.nodes[1]!);
  await attach(cluster, { volume: volume.id });
  await take(cluster, volume.id);
  await cluster.nodes[1]!.connect(cluster.control.grpc);
  await cluster.until(() => cluster.nodes[1]!.rebuildsOf(volume.id).length > 0);
  await cluster.nodes[1]!.endRebuild(volume.id);
  await cluster.request('POST', '/v1/nodes/node-1/drain');
  const other = cluster.nodes[2]!;
  await cluster.until(() => other.rebuildsOf(volume.id).length > 0);
  await other.endRebuild(volume.id);
  await cluster.until(async () => (await statesOf(cluster, volume.id))['node-1'] === 'stale');
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal((await nodeOf(cluster, 'node-1')).replicas, 1);
  await cluster.request('DELETE', `/v1/volumes/${volume.id}/snapshots/monday`);
  await cluster.until(async () => (await nodeOf(cluster, 'node-1')).replicas === 0);
});
