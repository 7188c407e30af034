/** Placement: which nodes take the replicas of a new volume. Pure. */
import { BlockwireError } from '@blockwire/shared/errors.ts';

export interface PlacementCandidate {
  readonly nodeId: string;
  readonly zone: string;
  /** Bytes that a new replica may still claim. */
  readonly freeBytes: number;
}

/**
 * Chooses `replicaCount` distinct nodes, each with room for `sizeBytes`: spread over zones first, then most
 * free bytes, then by id so that the choice is repeatable.
 *
 * @param candidates the nodes that may be chosen.
 * @param takenZones the zones of replicas that the volume has already, one entry each
 * Throws BW_NOT_ENOUGH_NODES when there are too few at all, BW_NOT_ENOUGH_SPACE when too few have room.
 */
export function placeReplicas(request: {
  readonly candidates: readonly PlacementCandidate[];
  readonly replicaCount: number;
  readonly sizeBytes: number;
  readonly takenZones?: readonly string[];
}): string[] {
  const { candidates, replicaCount, sizeBytes, takenZones = [] } = request;
  if (candidates.length < replicaCount) {
    throw new BlockwireError(
      'BW_NOT_ENOUGH_NODES',
      `${replicaCount} replicas need as many nodes online and not draining; there are ${candidates.length}`,
      { details: { replicas: replicaCount, nodesOnline: candidates.map(({ nodeId }) => nodeId) } },
    );
  }
  const fitting = candidates
    .filter(({ freeBytes }) => freeBytes >= sizeBytes)
    .sort((a, b) => b.freeBytes - a.freeBytes || (a.nodeId < b.nodeId ? -1 : 1));
  if (fitting.length < replicaCount) {
    const free = candidates.map(({ nodeId, freeBytes }) => ({ node: nodeId, freeBytes }));
    throw new BlockwireError(
      'BW_NOT_ENOUGH_SPACE',
      `${replicaCount} replicas of ${sizeBytes} bytes need that much free on as many nodes; ` +
        `free now: ${free.map((entry) => `${entry.node} ${entry.freeBytes}`).join(', ')}`,
      { details: { sizeBytes, nodes: free } },
    );
  }
  const chosen: string[] = [];
  const countByZone = new Map<string, number>();
  for (const zone of takenZones) countByZone.set(zone, (countByZone.get(zone) ?? 0) + 1);
  const inZone = (candidate: PlacementCandidate): number => countByZone.get(candidate.zone) ?? 0;
  while (chosen.length < replicaCount) {
    // The sort above decides among the zones that have fewest: reduce keeps the earlier one on a tie.
    const best = fitting.reduce((a, b) => (inZone(b) < inZone(a) ? b : a));
    fitting.splice(fitting.indexOf(best), 1);
    countByZone.set(best.zone, inZone(best) + 1);
    chosen.push(best.nodeId);
  }
  return chosen;
}
