/** Resuming an attachment under a new process of its agent, resizing a volume, and what attachments tell of their I/O. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AttachmentView, VolumeView } from '../routes/schemas.ts';
import { type Cluster, createVolume, startCluster } from './cluster.ts';

async function attach(cluster: Cluster, body: Record<string, unknown>): Promise<AttachmentView> {
  const answer = await cluster.request<AttachmentView>('POST', '/v1/attachments', body);
  assert.equal(answer.status, 201, JSON.stringify(answer.body));
  return answer.body;
}

test('a resumed attachment has the next generation, installed at every in-sync replica, and its options', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1 });
  const [agent] = cluster.agents;
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const asked = { queues: 4, queueDepth: 64, blockSizeBytes: 4096, readOnly: true, ioTimeoutMs: 5000 };
  const attached = await attach(cluster, { volume: volume.id, ...asked });
  for (const [name, value] of Object.entries(asked))
    assert.equal(attached[name as keyof typeof asked], value);

  const resumed = await agent!.resume(attached.id);
  assert.deepEqual(resumed.options, asked);
  assert.equal(resumed.sizeBytes, volume.sizeBytes);
  assert.equal(resumed.membership!.generation, attached.generation + 1);
  assert.equal(resumed.membership!.replicas.length, 2);
  for (const node of cluster.nodes) {
    assert.equal(node.replicas.get(volume.id)!.generation, attached.generation + 1);
  }
  const { body: now } = await cluster.request<AttachmentView>('GET', `/v1/attachments/${attached.id}`);
  assert.equal(now.generation, attached.generation + 1);

  // The new process is the writer now.
  cluster.nodes[0]!.react = ({ installEpoch }) => (installEpoch ? 'BW_IO' : undefined);
  const lost = await agent!.reportReplicaLost({
    volumeId: volume.id,
    generation: now.generation,
    epoch: volume.epoch,
    nodeId: 'node-1',
    reason: 'test',
  });
  assert.equal(lost.epoch, volume.epoch + 1);
});

test('a replica that cannot be reached when an attachment resumes is stale', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1 });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const attached = await attach(cluster, { volume: volume.id });
  await cluster.nodes[1]!.disconnect();
  await cluster.until(async () => {
    const { body } = await cluster.request<{ id: string; state: string }[]>('GET', '/v1/nodes');
    return body.some(({ state }) => state === 'offline');
  });
  const resumed = await cluster.agents[0]!.resume(attached.id);
  const states = resumed.membership!.replicas.map(({ nodeId, state }) => [nodeId, state]);
  assert.deepEqual(states, [
    ['node-1', 'REPLICA_STATE_IN_SYNC'],
    ['node-2', 'REPLICA_STATE_STALE'],
  ]);
});

test('nobody but its agent resumes an attachment, and nothing resumes what is detached', async (t) => {
  const cluster = await startCluster(t, { agentCount: 2 });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const { id } = await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  const unknown = { code: 'BW_ATTACHMENT_NOT_FOUND' };
  await assert.rejects(cluster.agents[1]!.resume(id), unknown);
  await cluster.request('DELETE', `/v1/attachments/${id}`);
  await assert.rejects(cluster.agents[0]!.resume(id), unknown);
});

test('a resize grows every replica, then the volume, then the device; repeated, it tells the device again', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1 });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const { id: attachmentId } = await attach(cluster, { volume: volume.id });
  const path = `/v1/volumes/${volume.id}`;
  const sizeBytes = 3 * 2 ** 20;
  for (let round = 1; round <= 2; round++) {
    const { status, body } = await cluster.request<VolumeView>('PATCH', path, { sizeBytes });
    assert.deepEqual([status, body.sizeBytes], [200, sizeBytes]);
    for (const node of cluster.nodes) assert.equal(node.replicas.get(volume.id)!.sizeBytes, sizeBytes);
    const told = cluster.agents[0]!.commands.flatMap(({ resize }) => (resize ? [resize] : []));
    assert.equal(told.length, round);
    assert.deepEqual({ ...told[0] }, { attachmentId, volumeId: volume.id, sizeBytes });
  }
  const shrunk = await cluster.request('PATCH', path, { sizeBytes: 2 ** 20 });
  assert.deepEqual([shrunk.status, shrunk.body.code], [400, 'BW_INVALID_ARGUMENT']);
  const huge = await cluster.request('PATCH', path, { sizeBytes: 2 ** 40 });
  assert.deepEqual([huge.status, huge.body.code], [507, 'BW_NOT_ENOUGH_SPACE']);
});

test('a resize that an in-sync replica refuses leaves the volume as it is', async (t) => {
  const cluster = await startCluster(t);
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  cluster.nodes[1]!.react = ({ resizeReplica }) => (resizeReplica ? 'BW_NOT_ENOUGH_SPACE' : undefined);
  const path = `/v1/volumes/${volume.id}`;
  const refused = await cluster.request('PATCH', path, { sizeBytes: 2 ** 21 });
  assert.deepEqual([refused.status, refused.body.code], [507, 'BW_NOT_ENOUGH_SPACE']);
  const { body: now } = await cluster.request<VolumeView>('GET', path);
  assert.equal(now.sizeBytes, volume.sizeBytes);
});

test('the space that a resize takes is claimed, and given back with the volume', async (t) => {
  const cluster = await startCluster(t);
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const freeBytes = async (): Promise<number[]> => {
    const { body } = await cluster.request<{ freeBytes: number }[]>('GET', '/v1/nodes');
    return body.map((node) => node.freeBytes);
  };
  const before = await freeBytes();
  await cluster.request('PATCH', `/v1/volumes/${volume.id}`, { sizeBytes: 2 ** 22 });
  assert.deepEqual(
    await freeBytes(),
    before.map((bytes) => bytes - 3 * 2 ** 20),
  );
  await cluster.request('DELETE', `/v1/volumes/${volume.id}`);
  assert.deepEqual(
    await freeBytes(),
    before.map((bytes) => bytes + 2 ** 20),
  );
});

test('an attachment shows what its agent says of its I/O, and nothing when the agent is away', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1 });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const { id, io } = await attach(cluster, { volume: volume.id });
  assert.equal(io, 'unknown');
  const ioNow = async (): Promise<string> =>
    (await cluster.request<AttachmentView>('GET', `/v1/attachments/${id}`)).body.io;
  await cluster.agents[0]!.heartbeat([{ attachmentId: id, io: 'IO_STATE_WAITING' }]);
  assert.equal(await ioNow(), 'waiting');
  await cluster.agents[0]!.heartbeat([{ attachmentId: id, io: 'IO_STATE_OK' }]);
  assert.equal(await ioNow(), 'ok');
  await cluster.agents[0]!.disconnect();
  await cluster.until(async () => (await ioNow()) === 'unknown');
});
