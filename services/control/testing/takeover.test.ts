/** What only an operator may do: give up what a stale replica lacks, and take a volume from another agent. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { AttachmentView, VolumeView } from '../routes/schemas.ts';
import { type Cluster, createVolume, type Failure, startCluster } from './cluster.ts';
import { attach, statesOf, takeOffline, volumeOf } from './views.ts';

async function setUp(t: TestContext, agentCount = 2) {
  const cluster = await startCluster(t, { agentCount });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const [first, second] = cluster.agents;
  return { cluster, volume, first: first!, second: second! };
}

function promote(cluster: Cluster, volume: VolumeView, node: string, body: unknown = { acceptLoss: true }) {
  return cluster.request<VolumeView & Failure>(
    'POST',
    `/v1/volumes/${volume.id}/replicas/${node}/promote`,
    body,
  );
}

/** node-2 misses writes, then node-1 is gone. */
async function loseInSync(cluster: Cluster, volume: VolumeView): Promise<void> {
  await takeOffline(cluster, cluster.nodes[1]!);
  const { id } = await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  await cluster.request('DELETE', `/v1/attachments/${id}`);
  await takeOffline(cluster, cluster.nodes[0]!);
  await cluster.nodes[1]!.connect(cluster.control.grpc);
}

test('a stale replica is promoted by who accepts the loss; the others are rebuilt from it', async (t) => {
  const { cluster, volume } = await setUp(t);
  await loseInSync(cluster, volume);
  const refused = await cluster.request('POST', '/v1/attachments', { volume: volume.id, agent: 'agent-1' });
  assert.equal(refused.body.code, 'BW_NO_IN_SYNC_REPLICA');
  const before = await volumeOf(cluster, volume.id);

  const { status, body } = await promote(cluster, volume, 'node-2');
  assert.equal(status, 200);
  assert.ok(body.generation > before.generation && body.epoch > before.epoch);
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'stale', 'node-2': 'inSync' });
  const installed = cluster.nodes[1]!.commandsOf('installEpoch').at(-1)!.installEpoch!;
  assert.deepEqual(
    [installed.generation, installed.epoch, installed.role, installed.lossEpoch],
    [body.generation, body.epoch, 'REPLICA_STATE_IN_SYNC', body.epoch],
  );
  await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  const [source] = cluster.nodes;
  await source!.connect(cluster.control.grpc);
  await cluster.until(() => source!.rebuildsOf(volume.id).length > 0);
  assert.equal(source!.rebuildsOf(volume.id)[0]?.order?.sourceNodeId, 'node-2');
});

test('a promotion that a restart cuts short counts, and its loss is told with the next attach', async (t) => {
  const { cluster, volume } = await setUp(t);
  await loseInSync(cluster, volume);
  const promoted = cluster.nodes[1]!;
  const installs = promoted.commandsOf('installEpoch').length;
  promoted.react = ({ action }) => (action === 'installEpoch' ? 'never' : undefined);
  const cutShort = promote(cluster, volume, 'node-2').catch(() => null);
  await cluster.until(() => promoted.commandsOf('installEpoch').length > installs);
  await cluster.restart();
  await cutShort;
  promoted.react = () => undefined;
  await promoted.connect(cluster.control.grpc);
  await cluster.agents[0]!.connect(cluster.control.grpc);
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'stale', 'node-2': 'inSync' });
  const { epoch } = await volumeOf(cluster, volume.id);
  await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  const installed = promoted.commandsOf('installEpoch').at(-1)!.installEpoch!;
  assert.deepEqual([installed.role, installed.lossEpoch], ['REPLICA_STATE_IN_SYNC', epoch]);
});

test('a promotion is refused without the word, and where nothing has to be given up', async (t) => {
  const { cluster, volume } = await setUp(t);
  for (const body of [{}, { acceptLoss: false }, { acceptLoss: 'yes' }]) {
    const { status, body: answer } = await promote(cluster, volume, 'node-2', body);
    assert.deepEqual([status, answer.code], [400, 'BW_INVALID_ARGUMENT'], JSON.stringify(body));
  }
  const inSync = await promote(cluster, volume, 'node-2');
  assert.deepEqual([inSync.status, inSync.body.code], [409, 'BW_CONFLICT']);
  const unknown = await promote(cluster, volume, 'node-9');
  assert.deepEqual([unknown.status, unknown.body.code], [503, 'BW_NODE_OFFLINE']);
  await takeOffline(cluster, cluster.nodes[1]!);
  assert.equal((await promote(cluster, volume, 'node-2')).body.code, 'BW_NODE_OFFLINE');
  await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  await takeOffline(cluster, cluster.nodes[0]!);
  await cluster.nodes[1]!.connect(cluster.control.grpc);
  const used = await promote(cluster, volume, 'node-2');
  assert.deepEqual([used.status, used.body.code], [409, 'BW_VOLUME_IN_USE']);
  assert.deepEqual(await statesOf(cluster, volume.id), { 'node-1': 'inSync', 'node-2': 'stale' });
});

test('a forced attach keeps the old agent out before the new one hears of it', async (t) => {
  const { cluster, volume, first, second } = await setUp(t);
  const old = await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  // Stopped: it neither answers nor goes away.
  first.react = () => 'never';
  let installed: (number | undefined)[] = [];
  second.react = () => {
    installed = cluster.nodes.map(({ replicas }) => replicas.get(volume.id)?.generation);
    return undefined;
  };
  const taken = await attach(cluster, { volume: volume.id, agent: 'agent-2', force: true });
  assert.equal(taken.generation, old.generation + 1);
  assert.deepEqual(installed, [taken.generation, taken.generation]);
  const list = await cluster.request<AttachmentView[]>('GET', '/v1/attachments');
  assert.deepEqual(
    list.body.map(({ id }) => id),
    [taken.id],
  ); // prettier-ignore

  const loss = { volumeId: volume.id, epoch: 1, nodeId: 'node-1', reason: '' };
  await assert.rejects(first.reportReplicaLost({ ...loss, generation: old.generation }), {
    code: 'BW_GENERATION_OLD',
  });
  await assert.rejects(first.resume(old.id), { code: 'BW_ATTACHMENT_NOT_FOUND' });
  const removal = first.commands.find(({ detach }) => detach)?.detach;
  assert.deepEqual([removal?.attachmentId, removal?.force], [old.id, true]);
  // Continued: it registers, and is told again.
  first.react = () => undefined;
  await first.connect(cluster.control.grpc);
  await cluster.until(() => !first.devices.has(old.id));
  assert.equal((await volumeOf(cluster, volume.id)).attachment, taken.id);
});

test('forced on the same host, the old device goes before the new one comes', async (t) => {
  const { cluster, volume, first } = await setUp(t);
  const old = await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  const taken = await attach(cluster, { volume: volume.id, agent: 'agent-1', force: true });
  assert.deepEqual(
    first.commands.map(({ action }) => action),
    ['attach', 'detach', 'attach'],
  ); // prettier-ignore
  assert.deepEqual([first.devices.has(old.id), first.devices.has(taken.id)], [false, true]);
});

test('forced where nobody has the volume, or a lost attachment does, it is an attach', async (t) => {
  const { cluster, volume, first, second } = await setUp(t);
  await attach(cluster, { volume: volume.id, agent: 'agent-1', force: true });
  first.devices.clear();
  await first.connect(cluster.control.grpc);
  const taken = await attach(cluster, { volume: volume.id, agent: 'agent-2', force: true });
  assert.equal(second.devices.size, 1);
  assert.equal((await volumeOf(cluster, volume.id)).attachment, taken.id);
  assert.equal(first.commands.filter(({ detach }) => detach).length, 0);
});

test('a forced attach that finds no replica leaves the volume with the agent that has it', async (t) => {
  const { cluster, volume } = await setUp(t);
  const old = await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  for (const node of cluster.nodes) await takeOffline(cluster, node);
  const refused = await cluster.request('POST', '/v1/attachments', {
    ...{ volume: volume.id, agent: 'agent-2', force: true },
  });
  assert.deepEqual([refused.status, refused.body.code], [503, 'BW_NO_IN_SYNC_REPLICA']);
  assert.equal((await volumeOf(cluster, volume.id)).attachment, old.id);
});

test('while an attach is under way it is not forced away', async (t) => {
  const { cluster, volume, first } = await setUp(t);
  first.react = () => 'never';
  const attaching = cluster.request('POST', '/v1/attachments', { volume: volume.id, agent: 'agent-1' });
  await cluster.until(() => first.commands.length > 0);
  const refused = await cluster.request('POST', '/v1/attachments', {
    ...{ volume: volume.id, agent: 'agent-2', force: true },
  });
  assert.deepEqual([refused.status, refused.body.code], [409, 'BW_CONFLICT']);
  await first.disconnect();
  assert.equal((await attaching).status, 503);
});

test('the generation of an attach that came to nothing is installed all the same, for those who are given addresses', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1, timing: { rebuildSweepMs: 20, pauseMsMin: 20 } });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const generations = () => cluster.nodes.map(({ replicas }) => replicas.get(volume.id)?.generation);
  for (const node of cluster.nodes) {
    node.react = ({ action }) => (action === 'installEpoch' ? 'BW_IO' : undefined);
  }
  assert.equal((await cluster.request('POST', '/v1/attachments', { volume: volume.id })).status, 503);
  assert.deepEqual(generations(), [1, 1]);
  for (const node of cluster.nodes) node.react = () => undefined;
  await cluster.until(() => generations().every((generation) => generation === 2));
  assert.equal((await volumeOf(cluster, volume.id)).degraded, false);
});
