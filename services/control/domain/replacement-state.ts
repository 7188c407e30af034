/**
 * Replicas that take the place of others. Pure, as in volume-state.ts.
 *
 * A replacement is one more replica, stale since epoch 0, on another node; it names the one it replaces. Whichever of the two is
 * in sync first stays, and the other one goes: first it leaves the membership (stale), then the record.
 */
import type { ReplicaRecord, VolumeRecord } from './records.ts';
import { forgetSnapshot, snapshotsOf } from './snapshot-state.ts';
import { inSyncReplicas } from './volume-state.ts';

/** What is known of a node. */
export interface NodeFacts {
  /** Away for so long that it is not waited for any more. */
  isGone(nodeId: string): boolean;
  /** To be emptied. */
  isDraining(nodeId: string): boolean;
}

/** A replica that is to go: from the membership while it gets writes, then from the record. */
export interface Surplus {
  readonly step: 'setAside' | 'remove';
  readonly nodeId: string;
  /** The one that stays in its place, if any. */
  readonly keptNodeId: string | null;
}

/** The volume with a replica on this node that has nothing yet. The epoch stays: nobody writes to it before its rebuild begins. */
export function addReplacement(
  volume: VolumeRecord,
  { nodeId, replaces }: { readonly nodeId: string; readonly replaces: string },
): VolumeRecord {
  const replica: ReplicaRecord = { nodeId, state: 'stale', staleSinceEpoch: 0, replaces };
  return { ...volume, replicas: [...volume.replicas, replica] };
}

/**
 * The replica that needs a replacement next, or null: one whose node is draining, or stale with its node gone; and neither
 * half of a replacement that is under way.
 */
export function nextToReplace(volume: VolumeRecord, { isGone, isDraining }: NodeFacts): string | null {
  const needy = volume.replicas.find(
    (replica) =>
      replaced(volume, replica) === undefined &&
      !volume.replicas.some(({ replaces }) => replaces === replica.nodeId) &&
      (isDraining(replica.nodeId) || (replica.state === 'stale' && isGone(replica.nodeId))),
  );
  return needy?.nodeId ?? null;
}

/** The replicas that are to go: not to be rebuilt any more. Never one without which nothing would be in sync. */
export function surplusOf(volume: VolumeRecord, { isGone, isDraining }: NodeFacts): Surplus[] {
  return volume.replicas.flatMap((replica) => {
    const old = replaced(volume, replica);
    if (old === undefined) return [];
    if (replica.state === 'inSync') return [surplus(old, replica.nodeId)];
    if (old.state === 'inSync' && !isDraining(old.nodeId)) return [surplus(replica, old.nodeId)];
    const isInVain = isDraining(replica.nodeId) || (replica.state === 'stale' && isGone(replica.nodeId));
    return isInVain && inSyncReplicas(volume).length > 0 ? [surplus(replica, null)] : [];
  });
}

/** The volume without a stale replica, and without the copies of its snapshots on that node. */
export function removeReplica(volume: VolumeRecord, nodeId: string): VolumeRecord {
  const left = snapshotsOf(volume).reduce((next, { name }) => forgetSnapshot(next, name, nodeId), volume);
  return {
    ...left,
    replicas: volume.replicas
      .filter((replica) => replica.nodeId !== nodeId || replica.state !== 'stale')
      .map(({ replaces, ...replica }) =>
        replaces === undefined || replaces === nodeId ? replica : { ...replica, replaces },
      ),
  };
}

/** The volume with nothing left of a stale replica: its node came back without it. */
export function forgetContent(volume: VolumeRecord, nodeId: string): VolumeRecord {
  return {
    ...volume,
    replicas: volume.replicas.map((replica) =>
      replica.nodeId === nodeId && replica.state === 'stale' ? { ...replica, staleSinceEpoch: 0 } : replica,
    ),
  };
}

function replaced(volume: VolumeRecord, { replaces }: ReplicaRecord): ReplicaRecord | undefined {
  return replaces === undefined ? undefined : volume.replicas.find(({ nodeId }) => nodeId === replaces);
}

function surplus({ state, nodeId }: ReplicaRecord, keptNodeId: string | null): Surplus {
  return { step: state === 'stale' ? 'remove' : 'setAside', nodeId, keptNodeId };
}
