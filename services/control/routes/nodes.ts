/** /v1/nodes and /v1/agents: who there is, and who is online. */
import { Type } from 'typebox';
import { agents, nodes } from '../domain/records.ts';
import { freeBytesByNode } from '../domain/registry.ts';
import type { ControlParts, RestApp } from './app.ts';
import { AgentView, ErrorBody, NodeView } from './schemas.ts';

export function nodeRoutes(app: RestApp, { context }: ControlParts): void {
  const { store, nodeFleet, agentFleet } = context;
  const liveness = (online: boolean): 'online' | 'offline' => (online ? 'online' : 'offline');

  app.get(
    '/v1/nodes',
    {
      schema: {
        tags: ['nodes'],
        summary: 'All storage nodes that ever registered',
        response: { 200: Type.Array(NodeView), '5xx': ErrorBody },
      },
    },
    async () => {
      const freeBytes = new Map(
        (await freeBytesByNode(context)).map((space) => [space.nodeId, space.freeBytes]),
      );
      return (await nodes.list(store)).map(({ value: node }) => ({
        id: node.id,
        state: liveness(nodeFleet.isOnline(node.id)),
        nbd: node.nbdAddress,
        zone: node.zone,
        capacityBytes: node.capacityBytes,
        freeBytes: freeBytes.get(node.id) ?? 0,
        version: node.version,
      }));
    },
  );

  app.get(
    '/v1/agents',
    {
      schema: {
        tags: ['agents'],
        summary: 'All agents that ever registered',
        response: { 200: Type.Array(AgentView), '5xx': ErrorBody },
      },
    },
    async () =>
      (await agents.list(store)).map(({ value: agent }) => ({
        id: agent.id,
        state: liveness(agentFleet.isOnline(agent.id)),
        host: agent.host,
        datapaths: agent.datapaths,
        version: agent.version,
      })),
  );
}
