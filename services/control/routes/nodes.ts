/** /v1/nodes and /v1/agents: who there is, who is online, and emptying a node. */
import { Type } from 'typebox';
import { agents, type NodeRecord, nodes, volumes } from '../domain/records.ts';
import { freeBytesByNode, setDraining } from '../domain/registry.ts';
import type { ControlParts, RestApp } from './app.ts';
import { AgentView, ErrorBody, IdParams, NodeView } from './schemas.ts';

export function nodeRoutes(app: RestApp, { context, rebuilder }: ControlParts): void {
  const { store, nodeFleet, agentFleet } = context;
  const liveness = (online: boolean): 'online' | 'offline' => (online ? 'online' : 'offline');

  const views = async (records: readonly NodeRecord[]): Promise<NodeView[]> => {
    const freeBytes = new Map(
      (await freeBytesByNode(context)).map((space) => [space.nodeId, space.freeBytes]),
    );
    const holders = (await volumes.list(store)).flatMap(({ value }) => value.replicas);
    return records.map((node) => ({
      id: node.id,
      state: liveness(nodeFleet.isOnline(node.id)),
      nbd: node.nbdAddress,
      zone: node.zone,
      capacityBytes: node.capacityBytes,
      freeBytes: freeBytes.get(node.id) ?? 0,
      draining: node.draining ?? false,
      replicas: holders.filter(({ nodeId }) => nodeId === node.id).length,
      version: node.version,
    }));
  };

  const drain = async (id: string, draining: boolean): Promise<NodeView> => {
    const record = await setDraining(context, id, draining);
    void rebuilder.sweep();
    return (await views([record]))[0]!;
  };

  app.get(
    '/v1/nodes',
    {
      schema: {
        tags: ['nodes'],
        summary: 'All storage nodes that ever registered',
        response: { 200: Type.Array(NodeView), '5xx': ErrorBody },
      },
    },
    async () => views((await nodes.list(store)).map(({ value }) => value)),
  );

  const drains = [
    ['POST', true, 'Empty a node: each of its replicas goes once another node has a new one in sync'],
    ['DELETE', false, 'Let a node keep its replicas, and take new ones again'],
  ] as const;
  for (const [method, draining, summary] of drains) {
    app.route({
      method,
      url: '/v1/nodes/:id/drain',
      schema: {
        ...{ tags: ['nodes'], summary, params: IdParams },
        response: { 200: NodeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
      handler: (request) => drain(request.params.id, draining),
    });
  }

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
