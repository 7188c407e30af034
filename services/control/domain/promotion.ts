/** The way out when every replica in sync is gone for good: an operator lets a stale one count, and gives up what it lacks. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import { installMembership } from './membership.ts';
import { type VolumeRecord, volumes } from './records.ts';
import { wentStale } from './replica-events.ts';
import { acceptLoss, assertReady, inSyncReplicas, nextGeneration, promoteReplica } from './volume-state.ts';

/**
 * Makes a stale replica the one that counts; the others are rebuilt from it when their nodes are back. Whoever wrote before is
 * kept out by the next generation.
 *
 * Throws BW_VOLUME_NOT_FOUND, BW_VOLUME_NOT_READY, BW_VOLUME_IN_USE, BW_REPLICA_NOT_FOUND, BW_NODE_OFFLINE, and BW_CONFLICT when
 * the replica is not stale, has nothing yet, or a replica in sync is there: then nothing has to be given up.
 */
export async function promote(
  context: Context,
  target: { readonly volumeId: string; readonly nodeId: string },
): Promise<VolumeRecord> {
  const { store, nodeFleet, log } = context;
  const { volumeId, nodeId } = target;
  if (!(await nodeFleet.waitOnline(nodeId))) {
    throw new BlockwireError('BW_NODE_OFFLINE', `node ${nodeId} is offline`, { details: { node: nodeId } });
  }
  const promoted = await commitRound(store, async () => {
    const found = await volumes.get(store, volumeId);
    if (found === null) throw new BlockwireError('BW_VOLUME_NOT_FOUND', `there is no volume ${volumeId}`);
    assertReady(found.value);
    if (!found.value.replicas.some((replica) => replica.nodeId === nodeId)) {
      throw new BlockwireError('BW_REPLICA_NOT_FOUND', `volume ${volumeId} has no replica on ${nodeId}`);
    }
    const present = inSyncReplicas(found.value).find((replica) => nodeFleet.isOnline(replica.nodeId));
    if (present !== undefined) {
      throw new BlockwireError(
        'BW_CONFLICT',
        `the replica of ${volumeId} on ${present.nodeId} is in sync and online; nothing has to be given up`,
        { details: { volume: volumeId, node: present.nodeId } },
      );
    }
    const next = nextGeneration(acceptLoss(promoteReplica(found.value, nodeId)));
    return {
      changes: [volumes.replace(volumeId, found.version, next)],
      result: next,
      events: [
        { type: 'replica.promoted', volume: volumeId, node: nodeId, epoch: next.epoch },
        ...wentStale(found.value, next, () => 'another replica was promoted'),
      ],
    };
  });
  const { epoch, generation } = promoted;
  log.warn({ volumeId, nodeId, epoch }, 'a stale replica was promoted; what it lacks is lost');
  return installMembership(context, { volumeId, generation });
}
