/** Volumes over REST, with real gRPC to fake nodes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VolumeView } from '../routes/schemas.ts';
import { createVolume, type Failure, startCluster } from './cluster.ts';
import { FakeNode } from './fakes.ts';

test('a created volume has a replica on each of its nodes, and can be found', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 3 });
  const created = await createVolume(cluster, { name: 'data', sizeBytes: 2 ** 21 });
  assert.equal(created.status, 201);
  const { id } = created.body;
  assert.match(id, /^vol-[0-9a-f]{12}$/);
  assert.equal(created.body.state, 'available');
  assert.equal(created.body.degraded, false);
  assert.deepEqual(
    created.body.replicas.map(({ node, state, uri }) => [node, state, uri.split('%3F')[0]]),
    [
      ['node-1', 'inSync', `nbd://10.0.0.1:10810/${id}`],
      ['node-2', 'inSync', `nbd://10.0.0.1:10811/${id}`],
    ],
  );
  for (const node of cluster.nodes.slice(0, 2)) assert.equal(node.replicas.get(id)?.sizeBytes, 2 ** 21);
  assert.equal(cluster.nodes[2]?.replicas.size, 0);

  const one = await cluster.request<VolumeView>('GET', `/v1/volumes/${id}`);
  assert.deepEqual(one.body, created.body);
  const list = await cluster.request<VolumeView[]>('GET', '/v1/volumes');
  assert.deepEqual(list.body, [created.body]);
  const named = await cluster.request<VolumeView[]>('GET', '/v1/volumes?name=data');
  assert.deepEqual(named.body, [created.body]);
  const none = await cluster.request<VolumeView[]>('GET', '/v1/volumes?name=other');
  assert.deepEqual(none.body, []);
});

test('a deleted volume is gone, with its replicas, its name and its claim of space', async (t) => {
  const cluster = await startCluster(t);
  const size = { sizeBytes: 2 ** 30 };
  const created = await createVolume(cluster, { name: 'data', ...size });
  assert.equal((await createVolume(cluster, { name: 'more' })).status, 507);

  const path = `/v1/volumes/${created.body.id}`;
  const deleted = await cluster.request<undefined>('DELETE', path);
  assert.equal(deleted.status, 204);
  assert.equal(deleted.body, undefined);
  for (const node of cluster.nodes) assert.equal(node.replicas.size, 0);
  const again = await cluster.request('DELETE', path);
  assert.deepEqual([again.status, again.body.code], [404, 'BW_VOLUME_NOT_FOUND']);
  assert.equal((await createVolume(cluster, { name: 'data', ...size })).status, 201);
});

test('bad input is refused with a stable code, and nothing is made', async (t) => {
  const cluster = await startCluster(t);
  const good = { name: 'data', sizeBytes: 2 ** 20, replicas: 2 };
  const bodies: unknown[] = [
    { ...good, replicas: 0 },
    { ...good, replicas: 9 },
    { ...good, replicas: 1.5 },
    { ...good, replicas: '2' },
    { ...good, sizeBytes: 2 ** 20 + 1 },
    { ...good, sizeBytes: 4096 },
    { ...good, sizeBytes: 0 },
    { ...good, sizeBytes: -(2 ** 20) },
    { ...good, sizeBytes: 2 ** 46 + 4096 },
    { ...good, sizeBytes: '1048576' },
    { ...good, sizeBytes: null },
    { ...good, name: '' },
    { ...good, name: '-a' },
    { ...good, name: 'a-' },
    { ...good, name: 'Data' },
    { ...good, name: 'a/b' },
    { ...good, name: 'data\n' },
    { ...good, name: 'a'.repeat(64) },
    { ...good, name: 7 },
    { ...good, extra: true },
    { name: 'data' },
    {},
    [],
    'null',
    '"text"',
    '{"name": ',
    '{"__proto__": {"a": 1}, "name": "data", "sizeBytes": 1048576, "replicas": 1}',
    '',
  ];
  for (const body of bodies) {
    const answer = await cluster.request('POST', '/v1/volumes', body);
    assert.deepEqual([answer.status, answer.body.code], [400, 'BW_INVALID_ARGUMENT'], JSON.stringify(body));
    assert.ok(answer.body.message.length > 0);
  }
  const named = await cluster.request('POST', '/v1/volumes', { ...good, sizeBytes: 5000 });
  assert.match(named.body.message, /sizeBytes must be an integer from 1 MiB to 64 TiB, a multiple of 4096/);
  assert.deepEqual(named.body.details, { part: 'body', fields: ['sizeBytes'] });
  assert.match((await cluster.request('POST', '/v1/volumes', { ...good, extra: 1 })).body.message, /extra/);

  const large = await cluster.request('POST', '/v1/volumes', { ...good, name: 'a'.repeat(100_000) });
  assert.deepEqual([large.status, large.body.code], [413, 'BW_BODY_TOO_LARGE']);
  const xml = await cluster.request('POST', '/v1/volumes', '<a/>', { 'content-type': 'text/xml' });
  assert.deepEqual([xml.status, xml.body.code], [400, 'BW_INVALID_ARGUMENT']);
  const query = await cluster.request('GET', '/v1/volumes?nam=data');
  assert.deepEqual([query.status, query.body.code], [400, 'BW_INVALID_ARGUMENT']);

  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/volumes')).body, []);
  for (const node of cluster.nodes) assert.equal(node.commands.length, 0);
});

test('what is not there is 404, with its own code for a volume', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 0 });
  for (const id of ['vol-000000000000', 'nonsense', '..%2Fnode%2Fnode-1', '%00', 'a%20b']) {
    for (const method of ['GET', 'DELETE']) {
      const answer = await cluster.request(method, `/v1/volumes/${id}`);
      assert.deepEqual([answer.status, answer.body.code], [404, 'BW_VOLUME_NOT_FOUND'], id);
    }
  }
  for (const [method, path] of [
    ['GET', '/'],
    ['GET', '/v1/nothing'],
    ['PUT', '/v1/volumes'],
  ] as const) {
    const answer = await cluster.request(method, path);
    assert.deepEqual([answer.status, answer.body.code], [404, 'BW_NOT_FOUND'], path);
  }
  for (const id of ['%zz', 'a'.repeat(500)]) {
    const malformed = await cluster.request('GET', `/v1/volumes/${id}`);
    assert.deepEqual([malformed.status, malformed.body.code], [400, 'BW_INVALID_ARGUMENT']);
  }
});

test('too few nodes, and a volume larger than their space, are told apart', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 2 });
  const nodes = await createVolume(cluster, { name: 'a', replicas: 3 });
  assert.deepEqual([nodes.status, codeOf(nodes)], [409, 'BW_NOT_ENOUGH_NODES']);
  const space = await createVolume(cluster, { name: 'a', sizeBytes: 2 ** 31 });
  assert.deepEqual([space.status, codeOf(space)], [507, 'BW_NOT_ENOUGH_SPACE']);
  await cluster.nodes[0]!.disconnect();
  await cluster.until(async () => (await nodeStates(cluster))['node-1'] === 'offline');
  const offline = await createVolume(cluster, { name: 'a', replicas: 2 });
  assert.deepEqual([offline.status, codeOf(offline)], [409, 'BW_NOT_ENOUGH_NODES']);
  assert.equal((await createVolume(cluster, { name: 'a', replicas: 1 })).status, 201);
});

test('a node that reports less free space than its capacity gets no more than that', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 0 });
  await cluster.addNode(new FakeNode('node-1', { freeBytes: 2 ** 21 }));
  assert.equal((await createVolume(cluster, { name: 'a', replicas: 1, sizeBytes: 2 ** 22 })).status, 507);
  assert.equal((await createVolume(cluster, { name: 'a', replicas: 1, sizeBytes: 2 ** 21 })).status, 201);
});

test('of many concurrent creates of one name exactly one wins', async (t) => {
  const cluster = await startCluster(t);
  const answers = await Promise.all(
    Array.from({ length: 12 }, () => createVolume(cluster, { name: 'data' })),
  );
  const statuses = answers.map(({ status }) => status).sort();
  assert.deepEqual(statuses, [201, ...Array.from({ length: 11 }, () => 409)]);
  for (const answer of answers.filter(({ status }) => status === 409)) {
    assert.equal(codeOf(answer), 'BW_VOLUME_NAME_TAKEN');
  }
  for (const node of cluster.nodes) assert.equal(node.replicas.size, 1);
});

test('concurrent creates never claim more than there is', async (t) => {
  const cluster = await startCluster(t);
  const answers = await Promise.all(
    Array.from({ length: 8 }, (_, index) =>
      createVolume(cluster, { name: `data-${index}`, sizeBytes: 2 ** 28, replicas: 2 }),
    ),
  );
  assert.equal(answers.filter(({ status }) => status === 201).length, 4);
  assert.equal(answers.filter(({ status }) => status === 507).length, 4);
});

test('a node that fails a creation leaves no volume, no name and no replica elsewhere', async (t) => {
  const cluster = await startCluster(t);
  const [good, bad] = cluster.nodes;
  bad!.react = ({ action }) => (action === 'createReplica' ? 'BW_IO' : undefined);
  const failed = await createVolume(cluster, { name: 'data' });
  assert.deepEqual([failed.status, codeOf(failed)], [500, 'BW_IO']);
  assert.match((failed.body as unknown as Failure).message, /data was not created: node node-2: the fake/);
  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/volumes')).body, []);
  await cluster.until(() => good!.replicas.size === 0 && good!.commandsOf('deleteReplica').length === 1);
  bad!.react = () => undefined;
  assert.equal((await createVolume(cluster, { name: 'data' })).status, 201);
});

test('a node that never answers a creation is a timeout', async (t) => {
  const cluster = await startCluster(t, { timing: { createReplicaMs: 50 } });
  cluster.nodes[1]!.react = ({ action }) => (action === 'createReplica' ? 'never' : undefined);
  const failed = await createVolume(cluster, { name: 'data' });
  assert.deepEqual([failed.status, codeOf(failed)], [504, 'BW_TIMEOUT']);
});

test('a replica on an offline node is deleted when the node is back; unknown replicas are never', async (t) => {
  const cluster = await startCluster(t);
  const [node] = cluster.nodes;
  const { id } = (await createVolume(cluster, { name: 'data' })).body;
  node!.replicas.set('vol-ffffffffffff', { sizeBytes: 4096, generation: 1, epoch: 1 });
  await node!.disconnect();
  await cluster.until(async () => (await nodeStates(cluster))['node-1'] === 'offline');
  assert.equal((await cluster.request('DELETE', `/v1/volumes/${id}`)).status, 204);
  assert.equal(cluster.nodes[1]!.replicas.size, 0);
  assert.ok(node!.replicas.has(id));

  await cluster.restart();
  await cluster.reconnectAll();
  await cluster.until(() => !node!.replicas.has(id));
  assert.deepEqual([...node!.replicas.keys()], ['vol-ffffffffffff']);
  assert.equal(node!.commandsOf('deleteReplica').length, 1);
});

test('the same Idempotency-Key answers the same; another request under it is refused', async (t) => {
  const cluster = await startCluster(t);
  const headers = { 'idempotency-key': 'key-1' };
  const [first, second] = await Promise.all([
    createVolume(cluster, { name: 'data' }, headers),
    createVolume(cluster, { name: 'data' }, headers),
  ]);
  const third = await createVolume(cluster, { name: 'data' }, headers);
  assert.deepEqual([first.status, second.status, third.status], [201, 201, 201]);
  assert.deepEqual(second.body, first.body);
  assert.deepEqual(third.body, first.body);
  assert.equal(third.headers.get('idempotency-replayed'), 'true');
  const other = await createVolume(cluster, { name: 'other' }, headers);
  assert.deepEqual([other.status, codeOf(other)], [422, 'BW_IDEMPOTENCY_MISMATCH']);
  const bad = await createVolume(cluster, { name: 'other' }, { 'idempotency-key': 'a b' });
  assert.deepEqual([bad.status, codeOf(bad)], [400, 'BW_INVALID_ARGUMENT']);

  await cluster.restart();
  await cluster.reconnectAll();
  assert.deepEqual((await createVolume(cluster, { name: 'data' }, headers)).body, first.body);
  assert.equal((await cluster.request<VolumeView[]>('GET', '/v1/volumes')).body.length, 1);
});

test('a request that failed may be repeated with its key', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 1 });
  const headers = { 'idempotency-key': 'key-1' };
  assert.equal((await createVolume(cluster, { name: 'data' }, headers)).status, 409);
  await cluster.addNode(new FakeNode('node-2'));
  assert.equal((await createVolume(cluster, { name: 'data' }, headers)).status, 201);
});

test('volumes, nodes and names survive a restart; an unfinished creation is rolled back', async (t) => {
  const cluster = await startCluster(t);
  const kept = (await createVolume(cluster, { name: 'kept' })).body;
  cluster.nodes[1]!.react = ({ action }) => (action === 'createReplica' ? 'never' : undefined);
  const unfinished = createVolume(cluster, { name: 'unfinished' });
  await cluster.until(() => cluster.nodes[1]!.commandsOf('createReplica').length === 2);
  const stopped = cluster.stop();
  const answer = await unfinished;
  assert.deepEqual([answer.status, codeOf(answer)], [503, 'BW_SHUTTING_DOWN']);
  assert.equal(await stopped, 0);

  await cluster.start();
  assert.deepEqual(await nodeStates(cluster), { 'node-1': 'offline', 'node-2': 'offline' });
  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/volumes')).body, [kept]);
  cluster.nodes[1]!.react = () => undefined;
  await cluster.reconnectAll();
  assert.deepEqual(await nodeStates(cluster), { 'node-1': 'online', 'node-2': 'online' });
  await cluster.until(() => cluster.nodes.every(({ replicas }) => replicas.size === 1));
  assert.equal(codeOf(await createVolume(cluster, { name: 'kept' })), 'BW_VOLUME_NAME_TAKEN');
  assert.equal((await createVolume(cluster, { name: 'unfinished' })).status, 201);
});

test('the service describes and measures itself', async (t) => {
  const cluster = await startCluster(t);
  await createVolume(cluster, { name: 'data' });
  assert.equal((await cluster.request('GET', '/healthz')).status, 200);
  const openapi = await cluster.request<{ paths: Record<string, unknown> }>('GET', '/openapi.json');
  assert.deepEqual(Object.keys(openapi.body.paths).sort(), [
    '/v1/agents',
    '/v1/attachments',
    '/v1/attachments/{id}',
    '/v1/events',
    '/v1/nodes',
    '/v1/nodes/{id}/drain',
    '/v1/volumes',
    '/v1/volumes/{id}',
    '/v1/volumes/{id}/replicas/{node}/promote',
    '/v1/volumes/{id}/scrub',
    '/v1/volumes/{id}/snapshots',
    '/v1/volumes/{id}/snapshots/{name}',
  ]);
  const metrics = await (await fetch(`${cluster.control.rest}/metrics`)).text();
  for (const line of [
    'blockwire_control_volumes{state="available"} 1',
    'blockwire_control_replicas{state="inSync"} 2',
    'blockwire_control_nodes{state="online"} 2',
    'blockwire_control_commands_outstanding{fleet="nodes"} 0',
    'blockwire_control_http_requests_total{method="POST",route="/v1/volumes",status="201"} 1',
  ]) {
    assert.ok(metrics.includes(line), line);
  }
});

function codeOf(answer: { readonly body: unknown }): string {
  return (answer.body as Failure).code;
}

async function nodeStates(
  cluster: Awaited<ReturnType<typeof startCluster>>,
): Promise<Record<string, string>> {
  const { body } = await cluster.request<{ id: string; state: string }[]>('GET', '/v1/nodes');
  return Object.fromEntries(body.map(({ id, state }) => [id, state]));
}
