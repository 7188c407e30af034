/** Nodes and agents at the gRPC edge: registration, liveness, and what is refused. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  agentsMethods,
  createAgentsClient,
  createNodesClient,
  nodesMethods,
  unary,
} from '@blockwire/proto/control/client.ts';
import { toRpcError } from '@blockwire/proto/control/errors.ts';
import type { RegisterNodeRequestInput } from '@blockwire/proto/control/types.ts';
import { startCluster } from './cluster.ts';
import { FakeNode } from './fakes.ts';

const TIMEOUT = { timeoutMs: 20_000 };

test('nodes and agents are listed with what they reported', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 0, agentCount: 1 });
  await cluster.addNode(new FakeNode('node-1', { zone: 'a', capacityBytes: 2 ** 40, freeBytes: 2 ** 39 }));
  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/nodes')).body, [
    {
      id: 'node-1',
      state: 'online',
      nbd: '10.0.0.1:10810',
      zone: 'a',
      capacityBytes: 2 ** 40,
      freeBytes: 2 ** 39,
      draining: false,
      replicas: 0,
      version: '0.1.0',
    },
  ]);
  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/agents')).body, [
    { id: 'agent-1', state: 'online', host: 'host-1', datapaths: ['fused', 'copy'], version: '0.1.0' },
  ]);
});

test('a node that goes silent with its watch open is taken offline', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 1, timing: { heartbeatIntervalMs: 40 } });
  await cluster.until(async () => {
    const { body } = await cluster.request<{ state: string }[]>('GET', '/v1/nodes');
    return body[0]?.state === 'offline';
  });
});

test('a heartbeat brings new figures; from a node that is not registered it is refused', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 1 });
  const client = createNodesClient(cluster.control.grpc);
  t.after(() => client.close());
  const beat = (nodeId: string) =>
    unary(client, nodesMethods().Heartbeat, { nodeId, capacityBytes: 2 ** 30, freeBytes: 2 ** 29 }, TIMEOUT);
  await beat('node-1');
  const { body } = await cluster.request<{ freeBytes: number }[]>('GET', '/v1/nodes');
  assert.equal(body[0]?.freeBytes, 2 ** 29);
  await assert.rejects(beat('node-9'), { code: 'BW_NODE_NOT_FOUND', status: 5 });
});

test('a watch before registration ends with a code', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 0 });
  const nodes = createNodesClient(cluster.control.grpc);
  const agents = createAgentsClient(cluster.control.grpc);
  t.after(() => {
    nodes.close();
    agents.close();
  });
  const failures = await Promise.all(
    [nodes.watch({ nodeId: 'node-1' }), agents.watch({ agentId: 'agent-1' })].map(
      (stream) => new Promise<unknown>((resolve) => stream.once('error', resolve)),
    ),
  );
  assert.deepEqual(
    failures.map((failure) => toRpcError(failure).code),
    ['BW_NODE_NOT_FOUND', 'BW_AGENT_NOT_FOUND'],
  );
});

test('a malformed registration is refused and leaves nothing', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 0 });
  const nodes = createNodesClient(cluster.control.grpc);
  const agents = createAgentsClient(cluster.control.grpc);
  t.after(() => {
    nodes.close();
    agents.close();
  });
  const good: RegisterNodeRequestInput = { nodeId: 'node-1', nbdAddress: '10.0.0.1:10809' };
  for (const bad of [
    { nodeId: '' },
    { nodeId: '../x' },
    { nodeId: 'a'.repeat(64) },
    { nbdAddress: '' },
    { nbdAddress: 'host' },
    { nbdAddress: 'host:0' },
    { nbdAddress: 'host:65536' },
    { capacityBytes: '18446744073709551615' },
    { zone: 'z'.repeat(256) },
    { replicas: [{ volumeId: 'vol-000000000001', epoch: '18446744073709551615' }] },
  ]) {
    await assert.rejects(
      unary(nodes, nodesMethods().Register, { ...good, ...bad }, TIMEOUT),
      { code: 'BW_INVALID_ARGUMENT', status: 3 },
      JSON.stringify(bad),
    );
  }
  await assert.rejects(unary(agents, agentsMethods().Register, { agentId: 'A B' }, TIMEOUT), {
    code: 'BW_INVALID_ARGUMENT',
  });
  assert.deepEqual((await cluster.request<unknown>('GET', '/v1/nodes')).body, []);
  // A report of a volume with a strange name is no reason to refuse the node.
  await unary(nodes, nodesMethods().Register, { ...good, replicas: [{ volumeId: '../x' }] }, TIMEOUT);
});

test('an outcome that nobody waits for is accepted and changes nothing', async (t) => {
  const cluster = await startCluster(t, { nodeCount: 1 });
  const client = createNodesClient(cluster.control.grpc);
  t.after(() => client.close());
  const result = { commandId: 'cmd-unknown', errorCode: 'BW_FROM_THE_FUTURE', errorMessage: 'x' };
  await unary(client, nodesMethods().Complete, { nodeId: 'node-1', result }, TIMEOUT);
  await unary(client, nodesMethods().Complete, { nodeId: 'node-1' }, TIMEOUT);
});
