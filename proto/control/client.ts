/** Clients of the control plane's gRPC, and unary calls as promises with a deadline. */
import { type Client, type ClientOptions, credentials } from '@grpc/grpc-js';
import type { MethodDefinition } from '@grpc/proto-loader';
import { toRpcError } from './errors.ts';
import { loadControl } from './load.ts';
import type { AgentsClient, AgentsDefinition, NodesClient, NodesDefinition } from './types.ts';

/**
 * Pings find a control plane that vanished without closing the connection; the short reconnect bound lets a
 * node be back soon after the control plane is.
 */
const CLIENT_OPTIONS: ClientOptions = {
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.initial_reconnect_backoff_ms': 200,
  'grpc.max_reconnect_backoff_ms': 2_000,
  // Each client has its own connection, so that closing one leaves the others alone.
  'grpc.use_local_subchannel_pool': 1,
};

/** @param address host:port of the control plane's gRPC. Connects at the first call; call `close()` at the end. */
export function createNodesClient(address: string): NodesClient {
  return new (loadControl().Nodes)(address, credentials.createInsecure(), CLIENT_OPTIONS);
}

/** @param address host:port of the control plane's gRPC. Connects at the first call; call `close()` at the end. */
export function createAgentsClient(address: string): AgentsClient {
  return new (loadControl().Agents)(address, credentials.createInsecure(), CLIENT_OPTIONS);
}

/** The methods of the Nodes service, to be named in `unary`. */
export function nodesMethods(): NodesDefinition {
  return loadControl().Nodes.service;
}

/** The methods of the Agents service, to be named in `unary`. */
export function agentsMethods(): AgentsDefinition {
  return loadControl().Agents.service;
}

export interface UnaryOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

/**
 * One unary call. Rejects with an `RpcError`.
 *
 *     await unary(client, nodesMethods().Register, request, { timeoutMs: 5000 })
 */
export function unary<RequestInput, ResponseInput, Request, Response>(
  client: Client,
  method: MethodDefinition<RequestInput, ResponseInput, Request, Response>,
  request: RequestInput,
  options: UnaryOptions,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => call.cancel();
    const call = client.makeUnaryRequest<RequestInput, Response>(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      { deadline: Date.now() + options.timeoutMs },
      (error, response) => {
        options.signal?.removeEventListener('abort', onAbort);
        if (error !== null) reject(toRpcError(error));
        else if (response === undefined) reject(toRpcError(new Error('the answer is empty')));
        else resolve(response);
      },
    );
    if (options.signal?.aborted) call.cancel();
    else options.signal?.addEventListener('abort', onAbort, { once: true });
  });
}
