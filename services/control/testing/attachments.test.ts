/** Attachments over REST, with real gRPC to fake nodes and agents. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { AttachmentView, VolumeView } from '../routes/schemas.ts';
import { type Answer, type Cluster, createVolume, type Failure, startCluster } from './cluster.ts';

function attach(
  cluster: Cluster,
  body: { volume: string; agent?: string; datapath?: string },
  headers: Record<string, string> = {},
): Promise<Answer<AttachmentView>> {
  return cluster.request('POST', '/v1/attachments', body, headers);
}

function codeOf(answer: { readonly body: unknown }): string {
  return (answer.body as Failure).code;
}

async function volumeOf(cluster: Cluster, id: string): Promise<VolumeView> {
  return (await cluster.request<VolumeView>('GET', `/v1/volumes/${id}`)).body;
}

function statesOf(volume: VolumeView): Record<string, string> {
  return Object.fromEntries(volume.replicas.map(({ node, state }) => [node, state]));
}

async function setUp(t: TestContext, options: Parameters<typeof startCluster>[1] = {}) {
  const cluster = await startCluster(t, { agentCount: 1, ...options });
  const replicas = cluster.nodes.length;
  const volume = (await createVolume(cluster, { name: 'data', replicas })).body;
  return { cluster, volume, agent: cluster.agents[0]! };
}

async function isOnline(cluster: Cluster, kind: 'nodes' | 'agents', id: string): Promise<boolean> {
  const { body } = await cluster.request<{ id: string; state: string }[]>('GET', `/v1/${kind}`);
  return body.find((member) => member.id === id)?.state === 'online';
}

async function takeOffline(cluster: Cluster, kind: 'nodes' | 'agents', index: number): Promise<void> {
  const member = cluster[kind][index]!;
  await member.disconnect();
  await cluster.until(async () => !(await isOnline(cluster, kind, member.id)));
}

test('an attach installs the next generation at every replica before the agent hears of it', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const installedWhenAsked: (number | undefined)[] = [];
  agent.react = () => {
    for (const { replicas } of cluster.nodes) installedWhenAsked.push(replicas.get(volume.id)?.generation);
    return undefined;
  };
  const answer = await attach(cluster, { volume: volume.id });
  assert.equal(answer.status, 201);
  const { id, createdAt, ...rest } = answer.body;
  assert.match(id, /^att-[0-9a-f]{12}$/);
  assert.ok(Date.parse(createdAt) > 0);
  assert.deepEqual(rest, {
    volume: volume.id,
    agent: 'agent-1',
    device: '/dev/ublkb0',
    datapath: 'fused',
    state: 'attached',
    io: 'unknown',
    queues: 0,
    queueDepth: 0,
    blockSizeBytes: 0,
    readOnly: false,
    ioTimeoutMs: 0,
    generation: 2,
  });
  assert.deepEqual(installedWhenAsked, [2, 2]);
  const command = agent.commands[0]?.attach;
  assert.equal(command?.sizeBytes, 2 ** 20);
  assert.equal(command?.volumeName, 'data');
  const exportName = command?.membership?.replicas[0]?.exportName;
  assert.deepEqual(command?.membership, {
    volumeId: volume.id,
    generation: 2,
    epoch: 1,
    lossEpoch: 0,
    replicas: [
      {
        nodeId: 'node-1',
        nbdAddress: '10.0.0.1:10810',
        exportName,
        state: 'REPLICA_STATE_IN_SYNC',
        joinedEpoch: 1,
      },
      {
        nodeId: 'node-2',
        nbdAddress: '10.0.0.1:10811',
        exportName,
        state: 'REPLICA_STATE_IN_SYNC',
        joinedEpoch: 1,
      },
    ],
  });
  const after = await volumeOf(cluster, volume.id);
  assert.deepEqual([after.state, after.attachment, after.generation], ['inUse', id, 2]);
  assert.deepEqual((await cluster.request<unknown>('GET', `/v1/attachments/${id}`)).body, answer.body);
  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/attachments')).body, [answer.body]);
});

test('a volume has one writer: a second attach and a delete are refused until it is detached', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const { id } = (await attach(cluster, { volume: volume.id })).body;
  const second = await attach(cluster, { volume: volume.id });
  assert.deepEqual([second.status, codeOf(second)], [409, 'BW_VOLUME_IN_USE']);
  const deletion = await cluster.request('DELETE', `/v1/volumes/${volume.id}`);
  assert.deepEqual([deletion.status, deletion.body.code], [409, 'BW_VOLUME_IN_USE']);
  assert.deepEqual(deletion.body.details, { volume: volume.id, attachment: id });

  const detached = await cluster.request('DELETE', `/v1/attachments/${id}`);
  assert.equal(detached.status, 204);
  assert.equal(agent.devices.size, 0);
  const again = await cluster.request('DELETE', `/v1/attachments/${id}`);
  assert.deepEqual([again.status, again.body.code], [404, 'BW_ATTACHMENT_NOT_FOUND']);
  assert.equal((await volumeOf(cluster, volume.id)).state, 'available');
  assert.equal((await attach(cluster, { volume: volume.id })).body.generation, 3);
});

test('of concurrent attaches exactly one wins', async (t) => {
  const { cluster, volume } = await setUp(t);
  const answers = await Promise.all(Array.from({ length: 6 }, () => attach(cluster, { volume: volume.id })));
  const refused = answers.filter(({ status }) => status !== 201);
  assert.equal(refused.length, 5);
  for (const answer of refused) assert.equal(codeOf(answer), 'BW_VOLUME_IN_USE');
  assert.equal((await volumeOf(cluster, volume.id)).generation, 2);
});

test('bad attaches are refused and change nothing', async (t) => {
  const { cluster, volume } = await setUp(t);
  for (const [body, status, code] of [
    [{}, 400, 'BW_INVALID_ARGUMENT'],
    [{ volume: '' }, 400, 'BW_INVALID_ARGUMENT'],
    [{ volume: volume.id, datapath: 'warp' }, 400, 'BW_INVALID_ARGUMENT'],
    [{ volume: volume.id, force: 'yes' }, 400, 'BW_INVALID_ARGUMENT'],
    [{ volume: 'vol-000000000000' }, 404, 'BW_VOLUME_NOT_FOUND'],
    [{ volume: 'no such id' }, 404, 'BW_VOLUME_NOT_FOUND'],
    [{ volume: volume.id, agent: 'agent-9' }, 404, 'BW_AGENT_NOT_FOUND'],
    [{ volume: volume.id, agent: 'no/such' }, 404, 'BW_AGENT_NOT_FOUND'],
  ] as const) {
    const answer = await cluster.request('POST', '/v1/attachments', body);
    assert.deepEqual([answer.status, answer.body.code], [status, code], JSON.stringify(body));
  }
  const query = await cluster.request('DELETE', '/v1/attachments/att-000000000000?force=perhaps');
  assert.deepEqual([query.status, query.body.code], [400, 'BW_INVALID_ARGUMENT']);
  const detach = await cluster.request('DELETE', '/v1/attachments/att-000000000000');
  assert.deepEqual([detach.status, detach.body.code], [404, 'BW_ATTACHMENT_NOT_FOUND']);
  assert.deepEqual(await volumeOf(cluster, volume.id), volume);
});

test('without an agent named, the only one online is taken; else the answer says which there are', async (t) => {
  const { cluster, volume } = await setUp(t, { agentCount: 2 });
  const open = await attach(cluster, { volume: volume.id });
  assert.deepEqual([open.status, codeOf(open)], [400, 'BW_INVALID_ARGUMENT']);
  assert.match((open.body as unknown as Failure).message, /agent-1, agent-2/);
  await takeOffline(cluster, 'agents', 0);
  const offline = await attach(cluster, { volume: volume.id, agent: 'agent-1' });
  assert.deepEqual([offline.status, codeOf(offline)], [503, 'BW_AGENT_OFFLINE']);
  assert.equal((await attach(cluster, { volume: volume.id, datapath: 'copy' })).body.agent, 'agent-2');
  await takeOffline(cluster, 'agents', 1);
  const other = (await createVolume(cluster, { name: 'other' })).body;
  assert.equal(codeOf(await attach(cluster, { volume: other.id })), 'BW_AGENT_OFFLINE');
});

test('a replica whose node is offline is stale from the attach on', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  await takeOffline(cluster, 'nodes', 1);
  assert.equal((await attach(cluster, { volume: volume.id })).status, 201);
  const after = await volumeOf(cluster, volume.id);
  assert.deepEqual(statesOf(after), { 'node-1': 'inSync', 'node-2': 'stale' });
  assert.deepEqual([after.degraded, after.generation, after.epoch], [true, 2, 2]);
  assert.equal(cluster.nodes[0]!.replicas.get(volume.id)?.epoch, 2);
  assert.equal(agent.commands[0]?.attach?.membership?.replicas[1]?.state, 'REPLICA_STATE_STALE');
});

test('a node that does not take the new generation makes its replica stale', async (t) => {
  const { cluster, volume } = await setUp(t, { nodeCount: 3, timing: { installEpochMs: 1000 } });
  cluster.nodes[0]!.react = ({ action }) => (action === 'installEpoch' ? 'never' : undefined);
  cluster.nodes[1]!.react = ({ action }) => (action === 'installEpoch' ? 'BW_REPLICA_NOT_FOUND' : undefined);
  assert.equal((await attach(cluster, { volume: volume.id })).status, 201);
  const after = await volumeOf(cluster, volume.id);
  assert.deepEqual(statesOf(after), { 'node-1': 'stale', 'node-2': 'stale', 'node-3': 'inSync' });
  assert.equal(cluster.nodes[2]!.replicas.get(volume.id)?.epoch, after.epoch);
});

test('without any in-sync replica that answers an attach fails, and no replica is marked', async (t) => {
  const { cluster, volume } = await setUp(t);
  for (const node of cluster.nodes) {
    node.react = ({ action }) => (action === 'installEpoch' ? 'BW_IO' : undefined);
  }
  const refused = await attach(cluster, { volume: volume.id });
  assert.deepEqual([refused.status, codeOf(refused)], [503, 'BW_NO_IN_SYNC_REPLICA']);
  await takeOffline(cluster, 'nodes', 0);
  await takeOffline(cluster, 'nodes', 1);
  const offline = await attach(cluster, { volume: volume.id });
  assert.deepEqual([offline.status, codeOf(offline)], [503, 'BW_NO_IN_SYNC_REPLICA']);
  const after = await volumeOf(cluster, volume.id);
  assert.deepEqual([after.state, after.degraded, after.attachment], ['available', false, null]);
});

test('an attach that the agent refuses frees the volume', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  agent.react = ({ action }) => (action === 'attach' ? 'BW_KERNEL' : undefined);
  const refused = await attach(cluster, { volume: volume.id });
  assert.deepEqual([refused.status, codeOf(refused)], [500, 'BW_KERNEL']);
  assert.equal((await volumeOf(cluster, volume.id)).state, 'available');
  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/attachments')).body, []);
  agent.react = () => undefined;
  assert.equal((await attach(cluster, { volume: volume.id })).body.generation, 3);
});

test('an attach without an answer is undone: the agent is told to remove what it may have made', async (t) => {
  const { cluster, volume, agent } = await setUp(t, { timing: { attachMs: 50 } });
  agent.react = ({ action }) => (action === 'attach' ? 'never' : undefined);
  const late = await attach(cluster, { volume: volume.id });
  assert.deepEqual([late.status, codeOf(late)], [504, 'BW_TIMEOUT']);
  const { attachmentId } = agent.commands[0]!.attach!;
  await cluster.until(() => agent.commands.some(({ detach }) => detach?.attachmentId === attachmentId));
  assert.equal(agent.commands[1]?.detach?.force, true);
});

test('a detach of a device that is open is refused; with force it goes', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const { id } = (await attach(cluster, { volume: volume.id })).body;
  agent.react = ({ detach }) => (detach && !detach.force ? 'BW_DEVICE_BUSY' : undefined);
  const busy = await cluster.request('DELETE', `/v1/attachments/${id}`);
  assert.deepEqual([busy.status, busy.body.code], [409, 'BW_DEVICE_BUSY']);
  const kept = await cluster.request<AttachmentView>('GET', `/v1/attachments/${id}`);
  assert.equal(kept.body.state, 'attached');
  assert.equal((await cluster.request('DELETE', `/v1/attachments/${id}?force=true`)).status, 204);
  assert.equal((await volumeOf(cluster, volume.id)).state, 'available');
});

test('a detach from an offline agent needs force, and reaches the agent when it is back', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const { id } = (await attach(cluster, { volume: volume.id })).body;
  await takeOffline(cluster, 'agents', 0);
  const refused = await cluster.request('DELETE', `/v1/attachments/${id}`);
  assert.deepEqual([refused.status, refused.body.code], [503, 'BW_AGENT_OFFLINE']);
  assert.equal((await cluster.request('DELETE', `/v1/attachments/${id}?force=true`)).status, 204);
  assert.equal((await volumeOf(cluster, volume.id)).state, 'available');
  assert.ok(agent.devices.has(id));
  agent.devices.set('att-ffffffffffff', { attachmentId: 'att-ffffffffffff', device: '/dev/ublkb7' });
  await agent.connect(cluster.control.grpc);
  await cluster.until(() => !agent.devices.has(id));
  assert.deepEqual([...agent.devices.keys()], ['att-ffffffffffff']);
});

test('an attachment survives a restart while its agent serves the device, and is lost when not', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const made = (await attach(cluster, { volume: volume.id })).body;
  const path = `/v1/attachments/${made.id}`;
  await cluster.restart();
  await cluster.reconnectAll();
  assert.deepEqual((await cluster.request<unknown>('GET', path)).body, made);

  const device = agent.devices.get(made.id)!;
  agent.devices.clear();
  await agent.connect(cluster.control.grpc);
  const lost = (await cluster.request<AttachmentView>('GET', path)).body;
  assert.equal(lost.state, 'lost');
  assert.equal((await volumeOf(cluster, volume.id)).state, 'inUse');

  agent.devices.set(made.id, device);
  await agent.connect(cluster.control.grpc);
  assert.equal((await cluster.request<AttachmentView>('GET', path)).body.state, 'attached');

  agent.devices.clear();
  await agent.connect(cluster.control.grpc);
  assert.equal((await cluster.request('DELETE', path)).status, 204);
  assert.equal((await volumeOf(cluster, volume.id)).state, 'available');
});

test('right after a restart a create waits for nodes that are on their way back', async (t) => {
  const { cluster } = await setUp(t, { timing: { reconnectGraceMs: 20_000 } });
  await cluster.restart();
  const creating = createVolume(cluster, { name: 'other' });
  await cluster.reconnectAll();
  assert.equal((await creating).status, 201);
});

test('right after a restart an attach waits for nodes that are on their way back', async (t) => {
  const { cluster, volume } = await setUp(t, { timing: { reconnectGraceMs: 20_000 } });
  await cluster.restart();
  await cluster.nodes[0]!.connect(cluster.control.grpc);
  await cluster.agents[0]!.connect(cluster.control.grpc);
  const attaching = attach(cluster, { volume: volume.id });
  await cluster.nodes[1]!.connect(cluster.control.grpc);
  assert.equal((await attaching).status, 201);
  assert.equal((await volumeOf(cluster, volume.id)).degraded, false);
});

test('a lost replica goes stale, the survivors know the new epoch, and then the agent does', async (t) => {
  const { cluster, volume, agent } = await setUp(t, { nodeCount: 3 });
  const { generation } = (await attach(cluster, { volume: volume.id })).body;
  const report = { volumeId: volume.id, generation, epoch: 1, nodeId: 'node-2', reason: 'connection reset' };
  const membership = await agent.reportReplicaLost(report);
  assert.deepEqual([membership.generation, membership.epoch], [2, 2]);
  assert.deepEqual(
    membership.replicas.map(({ state }) => state),
    ['REPLICA_STATE_IN_SYNC', 'REPLICA_STATE_STALE', 'REPLICA_STATE_IN_SYNC'],
  );
  assert.deepEqual(
    cluster.nodes.map(({ replicas }) => replicas.get(volume.id)?.epoch),
    [2, 1, 2],
  );
  assert.deepEqual(await agent.reportReplicaLost(report), membership);
  const after = await volumeOf(cluster, volume.id);
  assert.deepEqual([after.degraded, after.epoch], [true, 2]);
});

test('two replicas lost at once leave the third', async (t) => {
  const { cluster, volume, agent } = await setUp(t, { nodeCount: 3 });
  const { generation } = (await attach(cluster, { volume: volume.id })).body;
  await takeOffline(cluster, 'nodes', 0);
  await takeOffline(cluster, 'nodes', 1);
  const common = { volumeId: volume.id, generation, epoch: 1, reason: 'connection reset' };
  await Promise.all(['node-1', 'node-2'].map((nodeId) => agent.reportReplicaLost({ ...common, nodeId })));
  const after = await volumeOf(cluster, volume.id);
  assert.deepEqual(statesOf(after), { 'node-1': 'stale', 'node-2': 'stale', 'node-3': 'inSync' });
  assert.equal(cluster.nodes[2]!.replicas.get(volume.id)?.epoch, after.epoch);
});

test('the last in-sync replica is never marked stale', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const { generation } = (await attach(cluster, { volume: volume.id })).body;
  const common = { volumeId: volume.id, generation, epoch: 1, reason: 'connection reset' };
  await agent.reportReplicaLost({ ...common, nodeId: 'node-1' });
  const membership = await agent.reportReplicaLost({ ...common, nodeId: 'node-2' });
  assert.deepEqual(
    membership.replicas.map(({ state }) => state),
    ['REPLICA_STATE_STALE', 'REPLICA_STATE_IN_SYNC'],
  );
  assert.equal(membership.epoch, 2);
});

test('only the writer of the present generation may report a lost replica', async (t) => {
  const { cluster, volume, agent } = await setUp(t, { agentCount: 2 });
  const { id, generation } = (await attach(cluster, { volume: volume.id, agent: 'agent-1' })).body;
  const report = { volumeId: volume.id, generation, epoch: 1, nodeId: 'node-2', reason: '' };
  const old = { code: 'BW_GENERATION_OLD', status: 9 };
  await assert.rejects(cluster.agents[1]!.reportReplicaLost(report), old);
  await assert.rejects(agent.reportReplicaLost({ ...report, generation: generation - 1 }), old);
  await assert.rejects(agent.reportReplicaLost({ ...report, nodeId: 'node-9' }), {
    code: 'BW_REPLICA_NOT_FOUND',
  });
  await assert.rejects(agent.reportReplicaLost({ ...report, volumeId: 'vol-000000000000' }), {
    code: 'BW_VOLUME_NOT_FOUND',
  });
  await assert.rejects(agent.reportReplicaLost({ ...report, volumeId: '../x' }), {
    code: 'BW_INVALID_ARGUMENT',
  });
  await cluster.request('DELETE', `/v1/attachments/${id}`);
  await assert.rejects(agent.reportReplicaLost(report), old);
  assert.equal((await volumeOf(cluster, volume.id)).degraded, false);
});

test('a generation that a node has persisted is never given again', async (t) => {
  const { cluster, volume } = await setUp(t);
  const [node] = cluster.nodes;
  node!.replicas.set(volume.id, { sizeBytes: volume.sizeBytes, generation: 7, epoch: 5 });
  await node!.connect(cluster.control.grpc);
  const { generation } = (await attach(cluster, { volume: volume.id })).body;
  assert.equal(generation, 8);
  assert.equal((await volumeOf(cluster, volume.id)).epoch, 5);
});

test('the same Idempotency-Key attaches once', async (t) => {
  const { cluster, volume, agent } = await setUp(t);
  const headers = { 'idempotency-key': 'attach-1' };
  const first = await attach(cluster, { volume: volume.id }, headers);
  const second = await attach(cluster, { volume: volume.id }, headers);
  assert.deepEqual([second.status, second.body], [201, first.body]);
  assert.equal(agent.commands.length, 1);
});
