/** The gRPC server for nodes and agents. */

import { addAgentsService, addNodesService } from '@blockwire/proto/control/service.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import type { Attachments } from '../domain/attachments.ts';
import { agentsHandlers } from './agents.ts';
import { type NodesParts, nodesHandlers } from './nodes.ts';

const STOP_MS_MAX = 2_000;

export interface RpcServer {
  /** host:port, with the port that was taken. */
  readonly address: string;
  /** Lets running calls end for a moment, then closes every connection. */
  stop(): Promise<void>;
}

/** Listens; port 0 takes any free one. Throws BW_CONFLICT when it cannot be taken. */
export async function startRpcServer(
  options: NodesParts & {
    readonly attachments: Attachments;
    readonly host: string;
    readonly port: number;
  },
): Promise<RpcServer> {
  const { context, attachments, host, port } = options;
  const server = new Server({
    // Connections of hosts that vanished are found even while no heartbeat is due.
    'grpc.keepalive_time_ms': 10_000,
    'grpc.keepalive_timeout_ms': 5_000,
  });
  addNodesService(server, nodesHandlers(options));
  addAgentsService(server, agentsHandlers(context, attachments));
  const bound = await new Promise<number>((resolve, reject) => {
    const target = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
    server.bindAsync(target, ServerCredentials.createInsecure(), (error, boundPort) => {
      if (error === null) resolve(boundPort);
      else reject(new BlockwireError('BW_CONFLICT', `gRPC cannot listen on ${target}: ${error.message}`));
    });
  });
  return {
    address: host.includes(':') ? `[${host}]:${bound}` : `${host}:${bound}`,
    stop: () =>
      new Promise((resolve) => {
        const timer = setTimeout(() => server.forceShutdown(), STOP_MS_MAX);
        server.tryShutdown(() => {
          clearTimeout(timer);
          resolve();
        });
      }),
  };
}
