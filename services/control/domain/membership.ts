/** Membership of a volume: installing generation and epoch at its nodes, and what happens when a replica is lost. */
import { BlockwireError, type ErrorCode, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import type { Context, Membership } from './context.ts';
import type { ControlEvent } from './events.ts';
import { attachments, nodes, type VolumeRecord, volumes } from './records.ts';
import { wentStale } from './replica-events.ts';
import { acceptLoss, completeRebuild, joinedEpochOf, markStale, writtenReplicas } from './volume-state.ts';

/** Each round marks one replica stale or sees another's change; more than this is a fault. */
const INSTALL_ROUNDS_MAX = 32;

const BEHIND: readonly ErrorCode[] = ['BW_GENERATION_OLD', 'BW_EPOCH_OLD'];

/** What agents are told: the volume's record with the nodes' present addresses. */
export async function membershipOf(context: Context, volume: VolumeRecord): Promise<Membership> {
  const exportName = context.exportNames.nameOf(volume, 'writer');
  const replicas = await Promise.all(
    volume.replicas.map(async (replica) => {
      const { nodeId, state } = replica;
      const node = await nodes.get(context.store, nodeId);
      const nbdAddress = node?.value.nbdAddress ?? '';
      return {
        nodeId,
        nbdAddress,
        exportName,
        state,
        joinedEpoch: joinedEpochOf(replica),
      };
    }),
  );
  const { id: volumeId, generation, epoch, lossEpoch = 0 } = volume;
  return { volumeId, generation, epoch, lossEpoch, replicas };
}

/**
 * Installs the volume's generation and epoch at every replica that gets writes. A node that cannot take it makes its
 * replica stale, and the next epoch is installed at those that are left; so the answer is a record that all its
 * members know. Throws BW_NO_IN_SYNC_REPLICA when none took it (nothing is marked then),
 * BW_GENERATION_OLD when another writer was let in meanwhile.
 */
export async function installMembership(
  context: Context,
  target: { readonly volumeId: string; readonly generation: number },
): Promise<VolumeRecord> {
  const { store } = context;
  for (let round = 0; round < INSTALL_ROUNDS_MAX; round++) {
    const volume = await currentVolume(context, target);
    const failures = await installOnce(context, volume);
    if (isChanged(volume, await currentVolume(context, target))) continue;
    if (failures.size === 0) return volume;

    const errors = [...failures].map(([nodeId, { code, message }]) => ({ node: nodeId, code, message }));
    if (errors.some(({ code }) => BEHIND.includes(code))) {
      throw new BlockwireError(
        'BW_CONFLICT',
        `a node has seen a later membership of ${volume.id} than the control plane's store; restart that node's connection`,
        { details: { volume: volume.id, nodes: errors } },
      );
    }
    const nodeIds = [...failures.keys()];
    await commitRound(store, async () => {
      const found = await volumes.get(store, volume.id);
      if (found === null || isChanged(volume, found.value)) return { changes: [], result: undefined };
      const next = markStale(found.value, nodeIds);
      if (next === null) {
        throw new BlockwireError(
          'BW_NO_IN_SYNC_REPLICA',
          `no node took the membership of ${volume.id}: ${errors.map((e) => `${e.node}: ${e.message}`).join('; ')}`,
          { details: { volume: volume.id, nodes: errors } },
        );
      }
      return {
        changes: [volumes.replace(volume.id, found.version, next)],
        result: undefined,
        events: wentStale(found.value, next, (nodeId) => failures.get(nodeId)?.message ?? 'not reached'),
      };
    });
  }
  throw new BlockwireError('BW_CONFLICT', `the membership of ${target.volumeId} does not settle; try again`);
}

export interface ReplicaLostReport {
  readonly agentId: string;
  readonly volumeId: string;
  readonly generation: number;
  /** The epoch that the writer went by when it lost the replica. */
  readonly epoch: number;
  readonly nodeId: string;
  readonly reason: string;
}

interface LostOutcome {
  readonly volume: VolumeRecord;
  readonly kind: 'marked' | 'known' | 'last';
}

/**
 * The writer lost a replica: marks it stale, installs the new epoch at the survivors, and answers the
 * membership under which the waiting writes may complete. Safe to repeat. The last in-sync replica stays, and the
 * writer waits for it. Never answers a membership that its members do not know: without its epoch in their regions,
 * what the lost replica lacks would not be found again.
 *
 * Throws BW_GENERATION_OLD when the reporter is not the writer now, BW_VOLUME_NOT_FOUND, BW_REPLICA_NOT_FOUND.
 */
export async function replicaLost(context: Context, report: ReplicaLostReport): Promise<Membership> {
  const { store } = context;
  const { volumeId, nodeId, reason } = report;
  const outcome = await commitRound<LostOutcome>(store, async () => {
    const found = await volumes.get(store, volumeId);
    if (found === null) throw new BlockwireError('BW_VOLUME_NOT_FOUND', `there is no volume ${volumeId}`);
    await assertWriter(context, found.value, report);
    const volume = found.value;
    const replica = volume.replicas.find((candidate) => candidate.nodeId === nodeId);
    // Moved to another node since: what the writer goes by is old.
    if (replica === undefined && report.epoch < volume.epoch)
      return { changes: [], result: { volume, kind: 'known' } };
    if (replica === undefined) {
      throw new BlockwireError('BW_REPLICA_NOT_FOUND', `volume ${volumeId} has no replica on ${nodeId}`);
    }
    // It left and joined again since: the loss is an old one.
    if (report.epoch < joinedEpochOf(replica)) return { changes: [], result: { volume, kind: 'known' } };
    const next = markStale(volume, [nodeId]);
    if (next === null) return { changes: [], result: { volume, kind: 'last' } };
    if (next === volume) return { changes: [], result: { volume, kind: 'known' } };
    return {
      changes: [volumes.replace(volumeId, found.version, next)],
      result: { volume: next, kind: 'marked' },
      events: wentStale(volume, next, () => reason),
    };
  });
  if (outcome.kind === 'last') {
    context.log.warn({ volumeId, nodeId, reason }, 'the last in-sync replica is lost; writes wait for it');
  }
  const installed = await installMembership(context, { volumeId, generation: report.generation });
  return membershipOf(context, installed);
}

/**
 * Raises the volume's generation and epoch to what a node has persisted: when the store lost its last update,
 * the numbers it gave then must not be given a second time.
 */
export async function adoptReported(
  context: Context,
  report: {
    readonly nodeId: string;
    readonly volumeId: string;
    readonly generation: number;
    readonly epoch: number;
  },
): Promise<void> {
  const { store } = context;
  await commitRound(store, async () => {
    const found = await volumes.get(store, report.volumeId);
    const isMember = found?.value.replicas.some(({ nodeId }) => nodeId === report.nodeId) ?? false;
    if (found === null || !isMember) return { changes: [], result: undefined };
    const { generation, epoch } = found.value;
    if (report.generation <= generation && report.epoch <= epoch) return { changes: [], result: undefined };
    context.log.warn({ ...report, known: { generation, epoch } }, 'a node knows a later membership; adopted');
    const raised = {
      ...found.value,
      generation: Math.max(generation, report.generation),
      epoch: Math.max(epoch, report.epoch),
    };
    return {
      changes: [volumes.replace(report.volumeId, found.version, raised)],
      result: undefined,
      events: [adopted(raised, report.nodeId)],
    };
  });
}

function adopted({ id, generation, epoch }: VolumeRecord, nodeId: string): ControlEvent {
  return { type: 'volume.adopted', volume: id, node: nodeId, generation, epoch };
}

/**
 * A node is back from a power failure: its replica may lack what it acknowledged and had not flushed. It goes stale, and
 * is rebuilt like any other. The last in-sync one is taken as it is, and the writer is told by the epoch of the loss.
 */
export async function noteUnclean(
  context: Context,
  report: { readonly nodeId: string; readonly volumeId: string; readonly epoch: number },
): Promise<void> {
  const { nodeId, volumeId } = report;
  const reason = 'its node lost power';
  await commitRound(context.store, async () => {
    const nothing = { changes: [], result: undefined };
    const found = await volumes.get(context.store, volumeId);
    const replica = found?.value.replicas.find((candidate) => candidate.nodeId === nodeId);
    if (found === null || replica === undefined || replica.state === 'stale') return nothing;
    const stale = markStale(found.value, [nodeId]);
    // Accepted before, and not heard of yet.
    if (stale === null && (found.value.lossEpoch ?? 0) > report.epoch) return nothing;
    const next = stale ?? acceptLoss(found.value);
    const lossy = {
      type: 'replica.lossy',
      volume: volumeId,
      node: nodeId,
      epoch: next.epoch,
      reason,
    } as const;
    return {
      changes: [volumes.replace(volumeId, found.version, next)],
      result: undefined,
      events: [
        ...(stale === null ? [lossy] : []),
        ...wentStale(found.value, next, (id) =>
          id === nodeId ? reason : 'its source lost what was not flushed',
        ),
      ],
    };
  });
}

export interface RebuildReport {
  readonly nodeId: string;
  readonly volumeId: string;
  /** Names the rebuild. */
  readonly joinedEpoch: number;
  readonly sourceNodeId: string;
  /** Null when everything is copied and flushed. */
  readonly error: string | null;
}

/**
 * A node ended a rebuild: its replica is in sync, or stale again. Answered once the members know; safe to repeat, and a
 * rebuild that nobody waits for any more is no error.
 */
export async function rebuildEnded(context: Context, report: RebuildReport): Promise<void> {
  const { nodeId, volumeId, joinedEpoch, error } = report;
  const volume = await commitRound<VolumeRecord | null>(context.store, async () => {
    const found = await volumes.get(context.store, volumeId);
    const replica = found?.value.replicas.find((candidate) => candidate.nodeId === nodeId);
    if (found === null || replica?.state !== 'rebuilding' || replica.joinedEpoch !== joinedEpoch) {
      return { changes: [], result: null };
    }
    const completed = error === null ? completeRebuild(found.value, report) : null;
    const next = completed ?? markStale(found.value, [nodeId]) ?? found.value;
    const { epoch } = next;
    return {
      changes: [volumes.replace(volumeId, found.version, next)],
      result: next,
      events:
        completed === null
          ? wentStale(found.value, next, () => error ?? 'the source of its rebuild was lost')
          : [{ type: 'replica.inSync', volume: volumeId, node: nodeId, epoch }],
    };
  });
  if (volume === null) return;
  const { generation } = volume;
  await installMembership(context, { volumeId, generation });
}

/** Asks every replica that gets writes once; answers who could not take it, and why. */
export async function installOnce(
  context: Context,
  volume: VolumeRecord,
): Promise<Map<string, BlockwireError>> {
  const { nodeFleet, timing } = context;
  const { id: volumeId, generation, epoch, lossEpoch = 0 } = volume;
  const failures = new Map<string, BlockwireError>();
  await Promise.all(
    writtenReplicas(volume).map(async (replica) => {
      const { nodeId } = replica;
      const role = replica.state === 'inSync' ? 'inSync' : 'rebuilding';
      const joinedEpoch = joinedEpochOf(replica);
      try {
        await nodeFleet.waitOnline(nodeId);
        await nodeFleet.dispatch(
          nodeId,
          { kind: 'installEpoch', volumeId, generation, epoch, role, joinedEpoch, lossEpoch },
          { deadlineMs: timing.installEpochMs },
        );
      } catch (thrown) {
        const error = toBlockwireError(thrown);
        if (error.code === 'BW_SHUTTING_DOWN') throw error;
        failures.set(nodeId, error);
      }
    }),
  );
  return failures;
}

async function currentVolume(
  context: Context,
  target: { readonly volumeId: string; readonly generation: number },
): Promise<VolumeRecord> {
  const found = await volumes.get(context.store, target.volumeId);
  if (found === null)
    throw new BlockwireError('BW_VOLUME_NOT_FOUND', `there is no volume ${target.volumeId}`);
  if (found.value.generation !== target.generation) throw otherWriter(target.volumeId);
  return found.value;
}

async function assertWriter(
  context: Context,
  volume: VolumeRecord,
  report: ReplicaLostReport,
): Promise<void> {
  const attachment =
    volume.attachmentId === null ? null : await attachments.get(context.store, volume.attachmentId);
  if (volume.generation !== report.generation || attachment?.value.agentId !== report.agentId) {
    throw otherWriter(volume.id);
  }
}

function otherWriter(volumeId: string): BlockwireError {
  return new BlockwireError('BW_GENERATION_OLD', `another writer has ${volumeId} now, or none may write it`);
}

function isChanged(before: VolumeRecord, after: VolumeRecord): boolean {
  return before.generation !== after.generation || before.epoch !== after.epoch;
}
