/**
 * Moves replicas to other nodes: those whose node is away for good, and those on a node that is being drained. Decides from
 * what is recorded (replacement-state.ts); the rebuild of the new replica is like any other (rebuilds.ts).
 */
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import { placeReplicas } from './placement.ts';
import { claims, nodes, replicaTombstones, type VolumeRecord, volumes } from './records.ts';
import { freeBytesByNode } from './registry.ts';
import {
  addReplacement,
  type NodeFacts,
  nextToReplace,
  removeReplica,
  surplusOf,
} from './replacement-state.ts';
import { wentStale } from './replica-events.ts';
import { onlyCopiesOn } from './snapshot-state.ts';
import { doomReplica, type TombstoneCollector } from './tombstones.ts';
import { inSyncReplicas, markStale } from './volume-state.ts';

/**
 * Takes the next step for one volume, if there is one. To be called again and again, while nobody else changes the membership.
 *
 * @param target isSettled: the writer, if any, goes by the volume's present epoch: a replica that it may still write to stays.
 * Throws BW_NOT_ENOUGH_NODES or BW_NOT_ENOUGH_SPACE when there is no place for a replica that has to move.
 */
export async function moveReplicas(
  context: Context,
  tombstones: TombstoneCollector,
  target: { readonly volumeId: string; readonly facts: NodeFacts; readonly isSettled: boolean },
): Promise<void> {
  const { volumeId, facts } = target;
  await noteAbsence(context, volumeId, facts);
  await dropSurplus(context, tombstones, target);
  await replaceNext(context, volumeId, facts);
}

/** What is known of all nodes now. */
export async function nodeFacts({ store, nodeFleet, policy }: Context): Promise<NodeFacts> {
  const draining = new Set(
    (await nodes.list(store)).filter(({ value }) => value.draining).map(({ value }) => value.id),
  );
  return {
    isGone: (nodeId) => !nodeFleet.isOnline(nodeId) && nodeFleet.goneMs(nodeId) >= policy.replaceAfterMs,
    isDraining: (nodeId) => draining.has(nodeId),
  };
}

/** A volume without a writer has nobody who would notice: its replica on a node that is gone is stale from now on. */
async function noteAbsence(context: Context, volumeId: string, facts: NodeFacts): Promise<void> {
  const { store, nodeFleet } = context;
  await commitRound(store, async () => {
    const nothing = { changes: [], result: undefined };
    const found = await volumes.get(store, volumeId);
    if (found === null || found.value.attachmentId !== null) return nothing;
    const present = found.value.replicas.filter(({ state }) => state !== 'stale');
    const nodeIds = present.map(({ nodeId }) => nodeId).filter((nodeId) => facts.isGone(nodeId));
    const hasSource = inSyncReplicas(found.value).some(({ nodeId }) => nodeFleet.isOnline(nodeId));
    const volume = hasSource ? markStale(found.value, nodeIds) : null;
    if (volume === null || nodeIds.length === 0) return nothing;
    return {
      changes: [volumes.replace(volumeId, found.version, volume)],
      result: undefined,
      events: wentStale(found.value, volume, () => 'its node is away for too long'),
    };
  });
}

async function dropSurplus(
  context: Context,
  tombstones: TombstoneCollector,
  { volumeId, facts, isSettled }: { volumeId: string; facts: NodeFacts; isSettled: boolean },
): Promise<void> {
  const { store, log } = context;
  const removed = await commitRound<string | null>(store, async () => {
    const nothing = { changes: [], result: null };
    const found = await volumes.get(store, volumeId);
    const [surplus] = found === null ? [] : surplusOf(found.value, facts);
    if (found === null || surplus === undefined) return nothing;
    const { nodeId, step } = surplus;
    if (step === 'setAside') {
      const volume = markStale(found.value, [nodeId]);
      if (volume === null) return nothing;
      return {
        changes: [volumes.replace(volumeId, found.version, volume)],
        result: null,
        events: wentStale(found.value, volume, () => 'another replica has taken its place'),
      };
    }
    const onlyCopies = onlyCopiesOn(found.value, nodeId);
    if (onlyCopies.length > 0) {
      log.debug({ volumeId, nodeId, snapshots: onlyCopies }, 'a replica stays for its snapshots');
    }
    if (!isSettled || onlyCopies.length > 0) return nothing;
    const volume = removeReplica(found.value, nodeId);
    return {
      changes: [volumes.replace(volumeId, found.version, volume), doomReplica(context, found.value, nodeId)],
      result: nodeId,
      events: [{ type: 'replica.removed', volume: volumeId, node: nodeId }],
    };
  });
  if (removed !== null) void tombstones.collectNode(removed);
}

/** One commit adds the replica and claims its space. */
async function replaceNext(context: Context, volumeId: string, facts: NodeFacts): Promise<void> {
  const { store, nodeFleet } = context;
  await commitRound(store, async () => {
    const nothing = { changes: [], result: undefined };
    const found = await volumes.get(store, volumeId);
    if (found === null) return nothing;
    const replacedNodeId = nextToReplace(found.value, facts);
    const isPossible = inSyncReplicas(found.value).some(({ nodeId }) => nodeFleet.isOnline(nodeId));
    if (replacedNodeId === null || !isPossible) return nothing;
    const { chosen, claimedBytes, claimVersion } = await placeFor(context, found.value, replacedNodeId);
    const { sizeBytes } = found.value;
    return {
      changes: [
        volumes.replace(
          volumeId,
          found.version,
          addReplacement(found.value, { nodeId: chosen, replaces: replacedNodeId }),
        ),
        claims.replace(chosen, claimVersion, { claimedBytes: claimedBytes + sizeBytes }),
      ],
      result: undefined,
      events: [{ type: 'replica.replacing', volume: volumeId, node: chosen, replaces: replacedNodeId }],
    };
  });
}

async function placeFor(
  context: Context,
  volume: VolumeRecord,
  replacedNodeId: string,
): Promise<{ chosen: string; claimedBytes: number; claimVersion: number }> {
  const spaces = await freeBytesByNode(context);
  const members = new Set(volume.replicas.map(({ nodeId }) => nodeId));
  const isDoomedHere = await Promise.all(
    // A tombstone would delete the new replica with the old one.
    spaces.map(
      async ({ nodeId }) => (await replicaTombstones.get(context.store, nodeId, volume.id)) !== null,
    ),
  );
  const candidates = spaces.filter(
    ({ nodeId, online, draining }, index) =>
      online && !draining && !members.has(nodeId) && !isDoomedHere[index],
  );
  const stays = (nodeId: string): boolean => members.has(nodeId) && nodeId !== replacedNodeId;
  const takenZones = spaces.filter(({ nodeId }) => stays(nodeId)).map(({ zone }) => zone);
  const { sizeBytes } = volume;
  const [chosen = ''] = placeReplicas({ candidates, replicaCount: 1, sizeBytes, takenZones });
  const { claimedBytes, claimVersion } = candidates.find(({ nodeId }) => nodeId === chosen)!;
  return { chosen, claimedBytes, claimVersion };
}
