/** The server side of the control protocol: service definitions with the handlers' types. */
import type { Server } from '@grpc/grpc-js';
import { loadControl } from './load.ts';
import type { AgentsHandlers, NodesHandlers } from './types.ts';

/** Adds the Nodes service to a server that does not listen yet. */
export function addNodesService(server: Server, handlers: NodesHandlers): void {
  server.addService(loadControl().Nodes.service, handlers);
}

/** Adds the Agents service to a server that does not listen yet. */
export function addAgentsService(server: Server, handlers: AgentsHandlers): void {
  server.addService(loadControl().Agents.service, handlers);
}
