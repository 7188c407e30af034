/** The snapshots of one volume. Pure, as in volume-state.ts; kept in the volume's record, so that they come and go with it. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { SnapshotRecord, VolumeRecord } from './records.ts';
import { assertReady, inSyncReplicas } from './volume-state.ts';

/** Bounds the record, not the disks. */
const SNAPSHOTS_MAX = 256;

export function snapshotsOf(volume: VolumeRecord): readonly SnapshotRecord[] {
  return volume.snapshots ?? [];
}

/** One that can be read and cloned. Throws BW_SNAPSHOT_NOT_FOUND. */
export function readySnapshot(volume: VolumeRecord, name: string): SnapshotRecord {
  const found = snapshotsOf(volume).find((snapshot) => snapshot.name === name);
  if (found?.state !== 'ready') throw snapshotNotFound(volume, name);
  return found;
}

/**
 * The volume with a snapshot that is being taken at its replicas in sync. Throws BW_VOLUME_NOT_READY,
 * BW_SNAPSHOT_NAME_TAKEN, and BW_CONFLICT while another one is being taken or when there are too many.
 */
export function beginSnapshot(
  volume: VolumeRecord,
  { name, createdAt }: { readonly name: string; readonly createdAt: string },
): VolumeRecord {
  assertReady(volume);
  const existing = snapshotsOf(volume);
  if (existing.some((snapshot) => snapshot.name === name)) {
    throw new BlockwireError('BW_SNAPSHOT_NAME_TAKEN', `volume ${volume.id} has a snapshot ${name} already`);
  }
  if (existing.some(({ state }) => state === 'creating')) {
    throw new BlockwireError('BW_CONFLICT', `a snapshot of ${volume.id} is being taken; try again`);
  }
  if (existing.length >= SNAPSHOTS_MAX) {
    throw new BlockwireError(
      'BW_CONFLICT',
      `volume ${volume.id} has ${SNAPSHOTS_MAX} snapshots; delete one first`,
    );
  }
  const nodeIds = inSyncReplicas(volume).map(({ nodeId }) => nodeId);
  const { sizeBytes, epoch } = volume;
  const snapshot: SnapshotRecord = { name, state: 'creating', sizeBytes, epoch, nodeIds, createdAt };
  return { ...volume, snapshots: [...existing, snapshot] };
}

/**
 * The volume with a snapshot that these nodes have. The others keep their place until it is sure that they have nothing of it.
 * Throws BW_CONFLICT when it was given up, or a writer came or changed meanwhile.
 */
export function completeSnapshot(
  volume: VolumeRecord,
  taken: { readonly name: string; readonly generation: number; readonly nodeIds: readonly string[] },
): VolumeRecord {
  const { name, generation, nodeIds } = taken;
  const isThere = snapshotsOf(volume).some((each) => each.name === name && each.state === 'creating');
  if (!isThere || volume.generation !== generation) {
    throw new BlockwireError('BW_CONFLICT', `the writer of ${volume.id} changed meanwhile; try again`);
  }
  return withSnapshot(volume, name, (snapshot) => ({ ...snapshot, state: 'ready', nodeIds: [...nodeIds] }));
}

/** The volume with a snapshot that is to go from every node that has it. */
export function doomSnapshot(volume: VolumeRecord, name: string): VolumeRecord {
  return withSnapshot(volume, name, (snapshot) => ({ ...snapshot, state: 'deleting' }));
}

/** The volume when a node has nothing of this snapshot any more; one that is to go ends with its last node. */
export function forgetSnapshot(volume: VolumeRecord, name: string, nodeId: string): VolumeRecord {
  const without = withSnapshot(volume, name, (snapshot) => ({
    ...snapshot,
    nodeIds: snapshot.nodeIds.filter((id) => id !== nodeId),
  }));
  const left = snapshotsOf(without).filter(
    ({ state, nodeIds }) => state !== 'deleting' || nodeIds.length > 0,
  );
  return { ...without, snapshots: left };
}

/** Snapshots that nobody else has: while there is one, the node's replica stays. */
export function onlyCopiesOn(volume: VolumeRecord, nodeId: string): string[] {
  return snapshotsOf(volume)
    .filter(({ state, nodeIds }) => state !== 'deleting' && nodeIds.every((id) => id === nodeId))
    .map(({ name }) => name);
}

export function snapshotNotFound(volume: VolumeRecord, name: string): BlockwireError {
  return new BlockwireError('BW_SNAPSHOT_NOT_FOUND', `volume ${volume.id} has no snapshot ${name}`, {
    details: { volume: volume.id, snapshot: name },
  });
}

function withSnapshot(
  volume: VolumeRecord,
  name: string,
  change: (snapshot: SnapshotRecord) => SnapshotRecord,
): VolumeRecord {
  const snapshots = snapshotsOf(volume).map((each) => (each.name === name ? change(each) : each));
  return { ...volume, snapshots };
}
