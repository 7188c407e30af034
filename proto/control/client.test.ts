import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { Server, ServerCredentials, status } from '@grpc/grpc-js';
import { createNodesClient, nodesMethods, unary } from './client.ts';
import { RpcError, serviceError } from './errors.ts';
import { addNodesService } from './service.ts';
import type { NodesHandlers, RegisterNodeRequest } from './types.ts';

async function serve(t: TestContext, handlers: Partial<NodesHandlers>) {
  const refuse = serviceError('BW_INTERNAL', status.INTERNAL, 'not part of this test');
  const server = new Server();
  addNodesService(server, {
    Register: (_call, callback) => callback(refuse),
    Heartbeat: (_call, callback) => callback(refuse),
    Complete: (_call, callback) => callback(refuse),
    Watch: (call) => void call.emit('error', refuse),
    ...handlers,
  } as NodesHandlers);
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  const client = createNodesClient(`127.0.0.1:${port}`);
  t.after(() => {
    client.close();
    server.forceShutdown();
  });
  return client;
}

test('64-bit fields arrive as numbers, absent fields as their defaults', async (t) => {
  const seen: RegisterNodeRequest[] = [];
  const client = await serve(t, {
    Register: (call, callback) => {
      seen.push(call.request);
      callback(null, { heartbeatIntervalMs: 7 });
    },
  });
  const capacityBytes = 64 * 2 ** 40;
  const answer = await unary(
    client,
    nodesMethods().Register,
    { nodeId: 'node-1', capacityBytes, replicas: [{ volumeId: 'vol-1', epoch: 3 }] },
    { timeoutMs: 5000 },
  );
  assert.equal(answer.heartbeatIntervalMs, 7);
  assert.equal(seen[0]?.capacityBytes, capacityBytes);
  assert.equal(seen[0]?.zone, '');
  assert.deepEqual(seen[0]?.replicas, [
    { volumeId: 'vol-1', sizeBytes: 0, generation: 0, epoch: 3, unclean: false },
  ]);
});

test('a failure keeps its stable code, its status and its message', async (t) => {
  const client = await serve(t, {
    Heartbeat: (_call, callback) =>
      callback(serviceError('BW_NODE_NOT_FOUND', status.NOT_FOUND, 'register first')),
  });
  await assert.rejects(
    unary(client, nodesMethods().Heartbeat, {}, { timeoutMs: 5000 }),
    (error) =>
      error instanceof RpcError &&
      error.code === 'BW_NODE_NOT_FOUND' &&
      error.status === status.NOT_FOUND &&
      error.message === 'register first' &&
      !error.transient,
  );
});

test('a call that gets no answer ends at its deadline, or when its signal aborts', async (t) => {
  const client = await serve(t, { Heartbeat: () => {} });
  const call = (options: { timeoutMs: number; signal?: AbortSignal }) =>
    unary(client, nodesMethods().Heartbeat, {}, options);
  await assert.rejects(
    call({ timeoutMs: 50 }),
    (error) => error instanceof RpcError && error.code === null && error.status === status.DEADLINE_EXCEEDED,
  );
  await assert.rejects(
    call({ timeoutMs: 60_000, signal: AbortSignal.abort() }),
    (error) => error instanceof RpcError && error.status === status.CANCELLED,
  );
});
