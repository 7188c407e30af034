/**
 * The state machine of one volume and its replicas. Pure: each step takes the record as it is and returns the
 * record as it is to be; the caller commits it under compare-and-swap.
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { ReplicaRecord, VolumeRecord } from './records.ts';

export function inSyncReplicas(volume: VolumeRecord): ReplicaRecord[] {
  return volume.replicas.filter(({ state }) => state === 'inSync');
}

/** True when a replica is missing from what the volume was promised. */
export function isDegraded(volume: VolumeRecord): boolean {
  return volume.replicas.some(({ state }) => state !== 'inSync');
}

/** A new volume: every replica reads as zeros, so all are in sync. */
export function newVolume(options: {
  readonly id: string;
  readonly name: string;
  readonly sizeBytes: number;
  readonly nodeIds: readonly string[];
  readonly createdAt: string;
}): VolumeRecord {
  const { id, name, sizeBytes, nodeIds, createdAt } = options;
  return {
    id,
    name,
    sizeBytes,
    state: 'creating',
    generation: 1,
    epoch: 1,
    replicas: nodeIds.map((nodeId) => ({ nodeId, state: 'inSync', staleSinceEpoch: null })),
    attachmentId: null,
    createdAt,
  };
}

/**
 * The volume with these replicas stale at the next epoch; the same volume when none of them is in sync.
 * Null when no in-sync replica would be left: the last one holds the only complete data and never goes stale.
 */
export function markStale(volume: VolumeRecord, nodeIds: readonly string[]): VolumeRecord | null {
  const isLost = (replica: ReplicaRecord): boolean =>
    replica.state === 'inSync' && nodeIds.includes(replica.nodeId);
  if (!volume.replicas.some(isLost)) return volume;
  if (inSyncReplicas(volume).every(isLost)) return null;
  const epoch = volume.epoch + 1;
  return {
    ...volume,
    epoch,
    replicas: volume.replicas.map((replica) =>
      isLost(replica) ? { ...replica, state: 'stale', staleSinceEpoch: epoch } : replica,
    ),
  };
}

/**
 * Gives the volume to a writer at the next generation; replicas that cannot be reached go stale in the same
 * step. Throws BW_VOLUME_NOT_READY, BW_VOLUME_IN_USE, BW_NO_IN_SYNC_REPLICA.
 */
export function beginAttachment(
  volume: VolumeRecord,
  options: { readonly attachmentId: string; readonly unreachableNodeIds: readonly string[] },
): VolumeRecord {
  assertReady(volume);
  if (volume.attachmentId !== null) throw inUse(volume);
  const reachable = markStale(volume, options.unreachableNodeIds);
  if (reachable === null) {
    throw new BlockwireError(
      'BW_NO_IN_SYNC_REPLICA',
      `no node with an in-sync replica of ${volume.id} is online; start one of: ` +
        inSyncReplicas(volume)
          .map(({ nodeId }) => nodeId)
          .join(', '),
      { details: { volume: volume.id, nodes: inSyncReplicas(volume).map(({ nodeId }) => nodeId) } },
    );
  }
  return {
    ...reachable,
    state: 'inUse',
    generation: volume.generation + 1,
    attachmentId: options.attachmentId,
  };
}

/** Takes the volume from this attachment. The generation stays: it was given once and is never given again. */
export function endAttachment(volume: VolumeRecord, attachmentId: string): VolumeRecord {
  if (volume.attachmentId !== attachmentId) return volume;
  return { ...volume, state: 'available', attachmentId: null };
}

/** Throws BW_VOLUME_NOT_READY while the volume is being created. */
export function assertReady(volume: VolumeRecord): void {
  if (volume.state === 'creating') {
    throw new BlockwireError('BW_VOLUME_NOT_READY', `volume ${volume.id} is still being created; try again`);
  }
}

export function inUse(volume: VolumeRecord): BlockwireError {
  return new BlockwireError(
    'BW_VOLUME_IN_USE',
    `volume ${volume.id} is attached (${volume.attachmentId}); detach it first`,
    { details: { volume: volume.id, attachment: volume.attachmentId } },
  );
}
