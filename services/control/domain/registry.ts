/** Nodes and agents as the control plane knows them: registration, and what they have to offer. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import { adoptReported, noteUnclean } from './membership.ts';
import type { PlacementCandidate } from './placement.ts';
import { type AgentRecord, agents, claims, type NodeRecord, nodes } from './records.ts';

export interface ReplicaReport {
  readonly volumeId: string;
  readonly generation: number;
  readonly epoch: number;
  /** The node lost power since, and with it perhaps what was acknowledged and not flushed. */
  readonly unclean?: boolean;
}

/** A smaller change of a node's free space than this part of its capacity is worth no commit. */
const SPACE_CHANGE_PART_MIN = 1 / 256;

export interface NodeSpace extends PlacementCandidate {
  readonly online: boolean;
  readonly draining: boolean;
  readonly capacityBytes: number;
  readonly claimedBytes: number;
  /** Version of the claim record; 0 when there is none. */
  readonly claimVersion: number;
}

/** Records a node and takes over what it knows of its replicas. The node is online once it watches. */
export async function registerNode(
  context: Context,
  node: NodeRecord,
  replicas: readonly ReplicaReport[],
): Promise<void> {
  const { store, nodeFleet } = context;
  nodeFleet.depart(node.id);
  await commitRound(store, async () => {
    const found = await nodes.get(store, node.id);
    const draining = found?.value.draining ?? false;
    return {
      changes: [nodes.replace(node.id, found?.version ?? 0, { ...node, draining })],
      result: undefined,
    };
  });
  for (const { volumeId, generation, epoch, unclean = false } of replicas) {
    await adoptReported(context, { nodeId: node.id, volumeId, generation, epoch });
    if (unclean) await noteUnclean(context, { nodeId: node.id, volumeId, epoch });
  }
  nodeFleet.register(node.id);
}

/** Takes what a heartbeat reports of a node's space. Throws BW_NODE_NOT_FOUND for a node not registered. */
export async function updateNodeSpace(
  context: Context,
  report: { readonly nodeId: string; readonly capacityBytes: number; readonly freeBytes: number },
): Promise<void> {
  const { store, nodeFleet } = context;
  const { nodeId, capacityBytes, freeBytes } = report;
  nodeFleet.heartbeat(nodeId);
  await commitRound(store, async () => {
    const found = await nodes.get(store, nodeId);
    if (found === null) throw nodeNotFound(nodeId);
    const { value: node, version } = found;
    const isSmall = Math.abs(node.freeBytes - freeBytes) < capacityBytes * SPACE_CHANGE_PART_MIN;
    if (node.capacityBytes === capacityBytes && isSmall) return { changes: [], result: undefined };
    return {
      changes: [nodes.replace(nodeId, version, { ...node, capacityBytes, freeBytes })],
      result: undefined,
    };
  });
}

/**
 * Every node's space. Free for a new replica is what no replica claims, and no more than the node reports:
 * replicas are thin, so their claims may be ahead of what is on the disk, and other data may share it.
 */
export async function freeBytesByNode(context: Context): Promise<NodeSpace[]> {
  const { store, nodeFleet } = context;
  return Promise.all(
    (await nodes.list(store)).map(async ({ value: node }) => {
      const claim = await claims.get(store, node.id);
      const claimedBytes = claim?.value.claimedBytes ?? 0;
      return {
        nodeId: node.id,
        zone: node.zone,
        online: nodeFleet.isOnline(node.id),
        draining: node.draining ?? false,
        capacityBytes: node.capacityBytes,
        claimedBytes,
        claimVersion: claim?.version ?? 0,
        freeBytes: Math.max(0, Math.min(node.capacityBytes - claimedBytes, node.freeBytes)),
      };
    }),
  );
}

/** Empties a node, or lets it take replicas again. Safe to repeat. Throws BW_NODE_NOT_FOUND. */
export async function setDraining(
  { store }: Context,
  nodeId: string,
  draining: boolean,
): Promise<NodeRecord> {
  return commitRound(store, async () => {
    const found = await nodes.get(store, nodeId);
    if (found === null) throw new BlockwireError('BW_NODE_NOT_FOUND', `there is no node ${nodeId}`);
    const { value, version } = found;
    if ((value.draining ?? false) === draining) {
      return { changes: [], result: value };
    }
    const record: NodeRecord = { ...value, draining };
    return {
      changes: [nodes.replace(nodeId, version, record)],
      result: record,
      events: [{ type: draining ? 'node.draining' : 'node.kept', node: nodeId }],
    };
  });
}

export async function registerAgent(context: Context, agent: AgentRecord): Promise<void> {
  const { store, agentFleet } = context;
  agentFleet.depart(agent.id);
  await commitRound(store, async () => {
    const found = await agents.get(store, agent.id);
    return { changes: [agents.replace(agent.id, found?.version ?? 0, agent)], result: undefined };
  });
  agentFleet.register(agent.id);
}

/**
 * The agent to attach at: the named one, or the only one online. Waits a little for one that may be
 * reconnecting. Throws BW_AGENT_NOT_FOUND, BW_AGENT_OFFLINE, or BW_INVALID_ARGUMENT when the choice is open.
 */
export async function chooseAgent(context: Context, agentId: string | undefined): Promise<AgentRecord> {
  const { store, agentFleet } = context;
  if (agentId !== undefined) {
    const found = await agents.get(store, agentId);
    if (found === null) throw new BlockwireError('BW_AGENT_NOT_FOUND', `there is no agent ${agentId}`);
    if (!(await agentFleet.waitOnline(agentId))) throw agentOffline(agentId);
    return found.value;
  }
  const known = (await agents.list(store)).map(({ value }) => value);
  if (known.length === 1) await agentFleet.waitOnline(known[0]!.id);
  const online = known.filter(({ id }) => agentFleet.isOnline(id));
  if (online.length > 1) {
    const ids = online.map(({ id }) => id);
    throw new BlockwireError(
      'BW_INVALID_ARGUMENT',
      `name the agent to attach at, one of: ${ids.join(', ')}`,
      {
        details: { agents: ids },
      },
    );
  }
  const [only] = online;
  if (only === undefined) {
    throw new BlockwireError('BW_AGENT_OFFLINE', 'no agent is online; start `blockwire agent` on the host');
  }
  return only;
}

export function agentOffline(agentId: string): BlockwireError {
  return new BlockwireError('BW_AGENT_OFFLINE', `agent ${agentId} is offline`, {
    details: { agent: agentId },
  });
}

export function nodeNotFound(nodeId: string): BlockwireError {
  return new BlockwireError('BW_NODE_NOT_FOUND', `node ${nodeId} is not registered; call Register first`);
}
