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

/** In-sync replicas and those being rebuilt: all that the writer writes to. */
export function writtenReplicas(volume: VolumeRecord): ReplicaRecord[] {
  return volume.replicas.filter(({ state }) => state !== 'stale');
}

/** The epoch at which a replica last became a member that gets writes. */
export function joinedEpochOf(replica: ReplicaRecord): number {
  return replica.joinedEpoch ?? 1;
}

/**
 * The volume with these replicas stale at the next epoch; the same volume when none of them gets writes. A rebuild that
 * ends so leaves what the replica lacked before: its `staleSinceEpoch` stays.
 * Null when no in-sync replica would be left: the last one holds the only complete data and never goes stale.
 */
export function markStale(volume: VolumeRecord, nodeIds: readonly string[]): VolumeRecord | null {
  const isLost = ({ state, nodeId }: ReplicaRecord): boolean => state !== 'stale' && nodeIds.includes(nodeId);
  if (!volume.replicas.some(isLost)) return volume;
  if (inSyncReplicas(volume).every(isLost)) return null;
  const epoch = volume.epoch + 1;
  return {
    ...volume,
    epoch,
    replicas: volume.replicas.map((replica) =>
      isLost(replica)
        ? { ...replica, state: 'stale', staleSinceEpoch: replica.staleSinceEpoch ?? epoch }
        : replica,
    ),
  };
}

/**
 * The volume with a stale replica being rebuilt at the next epoch: from its installation on the replica gets all new
 * writes. Null when it is not stale, or when nothing is in sync.
 */
export function beginRebuild(volume: VolumeRecord, nodeId: string): VolumeRecord | null {
  const replica = volume.replicas.find((candidate) => candidate.nodeId === nodeId);
  if (replica?.state !== 'stale' || inSyncReplicas(volume).length === 0) return null;
  const epoch = volume.epoch + 1;
  return withReplica({ ...volume, epoch }, nodeId, { ...replica, state: 'rebuilding', joinedEpoch: epoch });
}

/**
 * The volume with a rebuilt replica in sync at the next epoch. Null when this rebuild is not the one under way, or when
 * its source did not stay in sync to the end.
 */
export function completeRebuild(
  volume: VolumeRecord,
  rebuild: { readonly nodeId: string; readonly joinedEpoch: number; readonly sourceNodeId: string },
): VolumeRecord | null {
  const { nodeId, joinedEpoch, sourceNodeId } = rebuild;
  const replica = volume.replicas.find((candidate) => candidate.nodeId === nodeId);
  if (replica?.state !== 'rebuilding' || replica.joinedEpoch !== joinedEpoch) return null;
  if (!inSyncReplicas(volume).some((source) => source.nodeId === sourceNodeId)) return null;
  const next: VolumeRecord = { ...volume, epoch: volume.epoch + 1 };
  return withReplica(next, nodeId, { ...replica, state: 'inSync', staleSinceEpoch: null });
}

/**
 * An operator makes a stale replica the one that counts, and accepts the loss of what it lacks; the others become
 * stale since what it has. Throws BW_VOLUME_IN_USE, BW_CONFLICT when it is not stale.
 */
export function promoteReplica(volume: VolumeRecord, nodeId: string): VolumeRecord {
  if (volume.attachmentId !== null) throw inUse(volume);
  const promoted = volume.replicas.find((candidate) => candidate.nodeId === nodeId);
  if (promoted?.state !== 'stale' || promoted.staleSinceEpoch === null) {
    throw new BlockwireError('BW_CONFLICT', `the replica of ${volume.id} on ${nodeId} is not stale`);
  }
  if (promoted.staleSinceEpoch === 0) {
    throw new BlockwireError('BW_CONFLICT', `the replica of ${volume.id} on ${nodeId} has no data yet`);
  }
  const since = promoted.staleSinceEpoch;
  const epoch = volume.epoch + 1;
  return {
    ...volume,
    epoch,
    replicas: volume.replicas.map((replica) =>
      replica.nodeId === nodeId
        ? { ...replica, state: 'inSync', staleSinceEpoch: null, joinedEpoch: epoch }
        : { ...replica, state: 'stale', staleSinceEpoch: Math.min(replica.staleSinceEpoch ?? since, since) },
    ),
  };
}

/** The next generation: a rebuild does not outlive the writer whose writes it relied on. */
export function nextGeneration(volume: VolumeRecord): VolumeRecord {
  return { ...withoutRebuilds(volume), generation: volume.generation + 1 };
}

/**
 * The last in-sync replica is back from a power failure: it is taken as it is, at the next epoch, which tells the writer
 * that what was not flushed may be lost. Rebuilds end: the replica may lack what they skip as written since.
 */
export function acceptLoss(volume: VolumeRecord): VolumeRecord {
  const epoch = volume.epoch + 1;
  return { ...withoutRebuilds(volume), epoch, lossEpoch: epoch };
}

function withoutRebuilds(volume: VolumeRecord): VolumeRecord {
  const rebuilding = volume.replicas.filter(({ state }) => state === 'rebuilding');
  const nodeIds = rebuilding.map(({ nodeId }) => nodeId);
  return markStale(volume, nodeIds) ?? volume;
}

function withReplica(volume: VolumeRecord, nodeId: string, replica: ReplicaRecord): VolumeRecord {
  return {
    ...volume,
    replicas: volume.replicas.map((candidate) => (candidate.nodeId === nodeId ? replica : candidate)),
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
  return { ...nextGeneration(reachable), state: 'inUse', attachmentId: options.attachmentId };
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
