/** Whether a commit tells what it does: each change of a replica, of the attachment and each loss has its event, and no other is told. */
import type { ControlEvent } from '@blockwire/control/domain/events.ts';
import type { ReplicaRecord, VolumeRecord } from '@blockwire/control/domain/records.ts';

const MADE_OR_GONE: readonly ControlEvent['type'][] = [
  ...(['volume.attaching', 'volume.detached', 'attachment.taken'] as const),
];

/** What is not told, or told though it did not happen; null when all is well. */
export function mistold(
  before: VolumeRecord,
  after: VolumeRecord,
  events: readonly ControlEvent[],
): string | null {
  const told = events.filter(isChange).map(short).sort().join(', ');
  const done = changes(before, after).sort().join(', ');
  return told === done ? null : `the commit that did [${done}] told [${told}]`;
}

/** In the words of the events. */
function changes(before: VolumeRecord, after: VolumeRecord): string[] {
  const was = (nodeId: string): ReplicaRecord | undefined =>
    before.replicas.find((replica) => replica.nodeId === nodeId);
  const isHere = (nodeId: string): boolean => after.replicas.some((replica) => replica.nodeId === nodeId);
  const moved = after.replicas.flatMap(({ nodeId, state }) => {
    if (was(nodeId) === undefined) return [`replica.replacing ${nodeId}`];
    return was(nodeId)?.state === state ? [] : [`replica.${state} ${nodeId}`];
  });
  const gone = before.replicas.filter(({ nodeId }) => !isHere(nodeId));
  return [
    ...moved,
    ...gone.map(({ nodeId }) => `replica.removed ${nodeId}`),
    ...(after.lossEpoch === before.lossEpoch ? [] : ['loss']),
    ...(after.attachmentId === before.attachmentId ? [] : attachmentChanges(before, after)),
  ];
}

function attachmentChanges(before: VolumeRecord, after: VolumeRecord): string[] {
  if (after.attachmentId === null) return [`volume.detached ${before.attachmentId}`];
  const taken = before.attachmentId === null ? [] : [`attachment.taken ${before.attachmentId}`];
  return [...taken, `volume.attaching ${after.attachmentId}`];
}

/** Others say nothing of what is compared here. */
function isChange({ type }: ControlEvent): boolean {
  return type.startsWith('replica.') || MADE_OR_GONE.includes(type);
}

function short(event: ControlEvent): string {
  if (event.type === 'replica.lossy') return 'loss';
  if ('attachment' in event) return `${event.type} ${event.attachment}`;
  return 'node' in event ? `${event.type} ${event.node}` : event.type;
}
