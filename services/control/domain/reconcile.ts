/**
 * After a writer that may have died: its last writes may be on some replicas and not on others. What has an intent anywhere
 * is copied from one in-sync replica to the others before the next writer begins, so that no read sees first the one and
 * then the other.
 */
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import { installMembership } from './membership.ts';
import { type VolumeRecord, volumes } from './records.ts';
import { wentStale } from './replica-events.ts';
import { resyncOrder } from './resync-order.ts';
import { inSyncReplicas, markStale } from './volume-state.ts';

/** Rounds with another source each, before those that cannot copy go stale. */
const ROUNDS_MAX = 3;

/**
 * Makes all in-sync replicas equal where a replica has an intent. The volume's membership must be installed, so that no
 * earlier writer writes any more. A replica that cannot copy is tried with other sources, then goes stale. Returns the
 * record whose members are equal. Throws what installMembership throws.
 */
export async function reconcile(
  context: Context,
  target: { readonly volumeId: string; readonly generation: number },
): Promise<VolumeRecord> {
  for (let round = 0; ; round++) {
    const volume = await installMembership(context, target);
    const members = inSyncReplicas(volume);
    const source = members[round % members.length]!;
    const others = members.filter(({ nodeId }) => nodeId !== source.nodeId).map(({ nodeId }) => nodeId);
    const failed = await copyFrom(context, volume, source.nodeId, others);
    if (failed.length === 0) {
      if (await isCurrent(context, volume)) return volume;
    } else if (round >= ROUNDS_MAX) {
      await setAside(context, volume, failed);
    }
    if (round > ROUNDS_MAX * 4) {
      throw new BlockwireError('BW_CONFLICT', `the replicas of ${volume.id} cannot be made equal; try again`);
    }
  }
}

async function copyFrom(
  context: Context,
  volume: VolumeRecord,
  sourceNodeId: string,
  nodeIds: readonly string[],
): Promise<string[]> {
  const { nodeFleet, timing, log } = context;
  const { id: volumeId } = volume;
  const order = { kind: 'reconcile', ...(await resyncOrder(context, volume, sourceNodeId)) } as const;
  const failed: string[] = [];
  await Promise.all(
    nodeIds.map(async (nodeId) => {
      try {
        await nodeFleet.dispatch(nodeId, order, { deadlineMs: timing.reconcileMs });
      } catch (thrown) {
        const error = toBlockwireError(thrown);
        if (error.code === 'BW_SHUTTING_DOWN') throw error;
        log.warn({ volumeId, nodeId, sourceNodeId, reason: error.message }, 'not reconciled');
        failed.push(nodeId);
      }
    }),
  );
  return failed;
}

async function isCurrent(context: Context, volume: VolumeRecord): Promise<boolean> {
  const now = await volumes.get(context.store, volume.id);
  return now?.value.generation === volume.generation && now.value.epoch === volume.epoch;
}

async function setAside(context: Context, volume: VolumeRecord, nodeIds: readonly string[]): Promise<void> {
  await commitRound(context.store, async () => {
    const found = await volumes.get(context.store, volume.id);
    if (found?.value.epoch !== volume.epoch) return { changes: [], result: undefined };
    const next = markStale(found.value, nodeIds) ?? found.value;
    return {
      changes: [volumes.replace(volume.id, found.version, next)],
      result: undefined,
      events: wentStale(found.value, next, () => 'what a dead writer left could not be reconciled'),
    };
  });
}
