/** What a node must have before a rebuild there begins: a replica, of the volume's size. */
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import { type ReplicaRecord, type VolumeRecord, volumes } from './records.ts';
import { forgetContent } from './replacement-state.ts';

/**
 * Sees to it, and throws the node's error. A replica that its node does not know any more is recorded as one that has nothing: the
 * next attempt makes it anew.
 */
export async function prepareReplica(
  context: Context,
  volume: VolumeRecord,
  { nodeId, staleSinceEpoch }: ReplicaRecord,
): Promise<void> {
  const { nodeFleet, timing } = context;
  const { id: volumeId, sizeBytes, generation, epoch } = volume;
  if (staleSinceEpoch === 0) {
    const create = { kind: 'createReplica', volumeId, sizeBytes, generation, epoch } as const;
    await nodeFleet.dispatch(nodeId, create, { deadlineMs: timing.createReplicaMs }).catch(orExists);
  }
  // It may have missed a resize.
  const resize = { kind: 'resizeReplica', volumeId, sizeBytes } as const;
  try {
    await nodeFleet.dispatch(nodeId, resize, { deadlineMs: timing.resizeMs });
  } catch (thrown) {
    if (toBlockwireError(thrown).code === 'BW_REPLICA_NOT_FOUND') await noteEmpty(context, volumeId, nodeId);
    throw thrown;
  }
}

async function noteEmpty({ store }: Context, volumeId: string, nodeId: string): Promise<void> {
  await commitRound(store, async () => {
    const found = await volumes.get(store, volumeId);
    if (found === null) return { changes: [], result: undefined };
    const next = forgetContent(found.value, nodeId);
    return { changes: [volumes.replace(volumeId, found.version, next)], result: undefined };
  });
}

/** Of another size than asked for: it is resized next. */
function orExists(thrown: unknown): void {
  if (toBlockwireError(thrown).code !== 'BW_REPLICA_EXISTS') throw thrown;
}
