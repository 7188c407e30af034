/** The events of a change of a volume's replicas. */
import type { ControlEvent } from './events.ts';
import type { VolumeRecord } from './records.ts';

/** One for each replica that is stale now and was not before. */
export function wentStale(
  before: VolumeRecord,
  after: VolumeRecord,
  reasonOf: (nodeId: string) => string,
): ControlEvent[] {
  const wasStale = (nodeId: string): boolean =>
    before.replicas.some((replica) => replica.nodeId === nodeId && replica.state === 'stale');
  const { id: volume, epoch } = after;
  return after.replicas
    .filter(({ nodeId, state }) => state === 'stale' && !wasStale(nodeId))
    .map(({ nodeId: node }) => ({ type: 'replica.stale', volume, node, epoch, reason: reasonOf(node) }));
}
