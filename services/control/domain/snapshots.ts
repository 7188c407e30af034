/**
 * Snapshots: the same moment at every replica in sync.
 *
 *   recorded as `creating` ──▶ writes held at the agent, none in flight ──▶ taken at every replica in sync
 *                          ──▶ writes let through; the hold had not ended by itself ──▶ `ready`
 *
 * Whatever fails, and whoever crashes on the way: the snapshot is taken back, and a hold ends by itself. Without a writer the
 * replicas are made equal first. A replica that was not in sync lacks the snapshot, also once it is rebuilt.
 */
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import { type Context, timestamp } from './context.ts';
import type { ControlEvent } from './events.ts';
import { reconcile } from './reconcile.ts';
import {
  type AttachmentRecord,
  attachments,
  deviceTombstones,
  type SnapshotRecord,
  type VolumeRecord,
  volumes,
} from './records.ts';
import { wentStale } from './replica-events.ts';
import {
  beginSnapshot,
  completeSnapshot,
  doomSnapshot,
  forgetSnapshot,
  readySnapshot,
  snapshotNotFound,
  snapshotsOf,
} from './snapshot-state.ts';
import { inSyncReplicas, nextGeneration } from './volume-state.ts';
import { volumeNotFound } from './volumes.ts';

export interface TakenSnapshot {
  readonly volume: VolumeRecord;
  readonly snapshot: SnapshotRecord;
}

interface Target {
  readonly volumeId: string;
  readonly name: string;
}

export class Snapshots {
  readonly #context: Context;
  /** Deletions that run, by volume: one at a time. */
  readonly #collections = new Map<string, Promise<void>>();

  constructor(context: Context) {
    this.#context = context;
  }

  /** Those that can be read, or are to go. Throws BW_VOLUME_NOT_FOUND. */
  async list(volumeId: string): Promise<TakenSnapshot[]> {
    const volume = await this.#volume(volumeId);
    return snapshotsOf(volume).map((snapshot) => ({ volume, snapshot }));
  }

  /**
   * Throws BW_VOLUME_NOT_FOUND, what `beginSnapshot` and `completeSnapshot` throw, BW_AGENT_OFFLINE, BW_NO_IN_SYNC_REPLICA,
   * BW_TIMEOUT when it took longer than writes may be held, and a node's error, such as BW_SNAPSHOT_UNSUPPORTED.
   */
  async create(target: Target): Promise<TakenSnapshot> {
    const { volumeId, name } = target;
    const begun = await this.#change(volumeId, (volume) =>
      beginSnapshot(volume, { name, createdAt: timestamp(this.#context) }),
    );
    try {
      const attachment = await this.#attachmentOf(begun);
      const taken =
        attachment === null
          ? await this.#takeAtRest(begun, name)
          : await this.#takeHeld(begun, name, attachment);
      const volume = await this.#change(volumeId, (latest) => completeSnapshot(latest, { name, ...taken }), {
        type: 'snapshot.created',
        volume: volumeId,
        snapshot: name,
      });
      return { volume, snapshot: readySnapshot(volume, name) };
    } catch (thrown) {
      await this.#change(volumeId, (latest) => doomSnapshot(latest, name), {
        ...{ type: 'snapshot.failed', volume: volumeId, snapshot: name },
      }).catch(orGone);
      void this.#collect(volumeId);
      throw thrown;
    }
  }

  /**
   * Gone from nodes that are online when this returns (within a bound), from the others when they are back. Throws
   * BW_VOLUME_NOT_FOUND, BW_SNAPSHOT_NOT_FOUND, BW_CONFLICT while it is being taken.
   */
  async delete({ volumeId, name }: Target): Promise<void> {
    const { timing } = this.#context;
    const deleted = { type: 'snapshot.deleted', volume: volumeId, snapshot: name } as const;
    const doom = (volume: VolumeRecord): VolumeRecord => {
      const found = snapshotsOf(volume).find((snapshot) => snapshot.name === name);
      if (found === undefined || found.state === 'deleting') throw snapshotNotFound(volume, name);
      if (found.state === 'creating') {
        throw new BlockwireError('BW_CONFLICT', `snapshot ${name} is being taken; try again`);
      }
      return doomSnapshot(volume, name);
    };
    await this.#change(volumeId, doom, deleted);
    const { promise: bound, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, timing.deleteReplicaMs);
    await Promise.race([this.#collect(volumeId), bound]);
    clearTimeout(timer);
  }

  /** At start: what a dead process was taking is given up. */
  async recover(): Promise<void> {
    for (const { value: volume } of await volumes.list(this.#context.store)) {
      for (const { name, state } of snapshotsOf(volume)) {
        if (state === 'creating') await this.#change(volume.id, (latest) => doomSnapshot(latest, name));
      }
    }
  }

  /** Deletes what is to go wherever a node is online. Never rejects. */
  async sweep(): Promise<void> {
    try {
      const found = await volumes.list(this.#context.store);
      const doomed = found.filter(({ value }) =>
        snapshotsOf(value).some(({ state }) => state === 'deleting'),
      );
      await Promise.all(doomed.map(({ value }) => this.#collect(value.id)));
    } catch (error) {
      this.#context.log.error({ err: error }, 'snapshots cannot be looked at');
    }
  }

  /** No writer: nobody writes once an old one is kept out, and the replicas are equal once they are reconciled. */
  async #takeAtRest(begun: VolumeRecord, name: string): Promise<Taken> {
    const { store, timing } = this.#context;
    const doomed = await deviceTombstones.list(store);
    const mayBeWritten = doomed.some(({ value }) => value.volumeId === begun.id);
    const { generation } = mayBeWritten ? await this.#change(begun.id, nextGeneration) : begun;
    await reconcile(this.#context, { volumeId: begun.id, generation });
    const nodeIds = await this.#takeEverywhere(begun.id, name, timing.snapshotHoldMs);
    return { generation, nodeIds };
  }

  async #takeHeld(begun: VolumeRecord, name: string, attachment: AttachmentRecord): Promise<Taken> {
    const { agentFleet, timing, now } = this.#context;
    const { id: attachmentId, agentId } = attachment;
    const holdMs = timing.snapshotHoldMs;
    const untilMs = now() + holdMs;
    const hold = { kind: 'holdWrites', attachmentId, holdMsMax: holdMs } as const;
    const release = { kind: 'releaseWrites', attachmentId } as const;
    let nodeIds: string[];
    try {
      await agentFleet.dispatch(agentId, hold, { deadlineMs: holdMs });
      nodeIds = await this.#takeEverywhere(begun.id, name, untilMs - now());
    } catch (thrown) {
      // Best effort: it ends by itself.
      agentFleet.dispatch(agentId, release, { deadlineMs: timing.membershipMs }).catch(() => {});
      throw thrown;
    }
    await agentFleet.dispatch(agentId, release, { deadlineMs: holdMs });
    return { generation: begun.generation, nodeIds };
  }

  /** The nodes that took it. A replica that left the membership meanwhile is left out. */
  async #takeEverywhere(volumeId: string, name: string, deadlineMs: number): Promise<string[]> {
    const { nodeFleet } = this.#context;
    const before = await this.#volume(volumeId);
    const planned = snapshotsOf(before).find((snapshot) => snapshot.name === name)?.nodeIds ?? [];
    const members = inSyncReplicas(before).filter(({ nodeId }) => planned.includes(nodeId));
    const failures = new Map<string, BlockwireError>();
    await Promise.all(
      members.map(async ({ nodeId }) => {
        const action = { kind: 'createSnapshot', volumeId, snapshot: name } as const;
        try {
          await nodeFleet.dispatch(nodeId, action, { deadlineMs: Math.max(1, deadlineMs) });
        } catch (thrown) {
          failures.set(nodeId, toBlockwireError(thrown));
        }
      }),
    );
    const after = await this.#volume(volumeId);
    for (const { nodeId } of inSyncReplicas(after)) {
      const error = failures.get(nodeId);
      if (error === undefined) continue;
      throw new BlockwireError(error.code, `no snapshot was taken: node ${nodeId}: ${error.message}`, {
        cause: error,
        details: { node: nodeId },
      });
    }
    const nodeIds = members.map(({ nodeId }) => nodeId).filter((nodeId) => !failures.has(nodeId));
    if (nodeIds.length === 0) {
      throw new BlockwireError(
        'BW_NO_IN_SYNC_REPLICA',
        `no replica of ${volumeId} took the snapshot; try again`,
      );
    }
    return nodeIds;
  }

  /** The attachment under which writes are to be held; null when nobody has the volume. */
  async #attachmentOf({ attachmentId }: VolumeRecord): Promise<AttachmentRecord | null> {
    if (attachmentId === null) return null;
    const attachment = await attachments.get(this.#context.store, attachmentId);
    if (attachment?.value.state === 'attached') return attachment.value;
    const state = attachment?.value.state ?? 'gone';
    throw new BlockwireError(
      'BW_CONFLICT',
      `attachment ${attachmentId} is ${state}; try again when it is not`,
    );
  }

  #collect(volumeId: string): Promise<void> {
    const before = this.#collections.get(volumeId) ?? Promise.resolve();
    const run = before
      .then(() => this.#deleteDoomed(volumeId))
      .catch((error: unknown) => {
        this.#context.log.warn({ volumeId, err: error }, 'a deletion of a snapshot is put off');
      });
    this.#collections.set(volumeId, run);
    void run.then(() => {
      if (this.#collections.get(volumeId) === run) this.#collections.delete(volumeId);
    });
    return run;
  }

  async #deleteDoomed(volumeId: string): Promise<void> {
    const { store, nodeFleet, timing } = this.#context;
    const volume = (await volumes.get(store, volumeId))?.value;
    const doomed =
      volume === undefined ? [] : snapshotsOf(volume).filter(({ state }) => state === 'deleting');
    for (const { name, nodeIds } of doomed) {
      for (const nodeId of nodeIds.filter((id) => nodeFleet.isOnline(id))) {
        const action = { kind: 'deleteSnapshot', volumeId, snapshot: name } as const;
        await nodeFleet.dispatch(nodeId, action, { deadlineMs: timing.deleteReplicaMs });
        await this.#change(volumeId, (latest) => forgetSnapshot(latest, name, nodeId)).catch(orGone);
      }
    }
  }

  async #volume(volumeId: string): Promise<VolumeRecord> {
    const found = await volumes.get(this.#context.store, volumeId);
    if (found === null) throw volumeNotFound(volumeId);
    return found.value;
  }

  #change(
    volumeId: string,
    change: (volume: VolumeRecord) => VolumeRecord,
    ...events: readonly ControlEvent[]
  ): Promise<VolumeRecord> {
    const { store } = this.#context;
    return commitRound(store, async () => {
      const found = await volumes.get(store, volumeId);
      if (found === null) throw volumeNotFound(volumeId);
      const next = change(found.value);
      const stale = wentStale(found.value, next, () => 'its rebuild ended with the writer');
      return {
        changes: [volumes.replace(volumeId, found.version, next)],
        result: next,
        events: [...events, ...stale],
      };
    });
  }
}

interface Taken {
  readonly generation: number;
  readonly nodeIds: readonly string[];
}

/** The volume was deleted meanwhile, and its snapshots with it. */
function orGone(thrown: unknown): void {
  if (toBlockwireError(thrown).code !== 'BW_VOLUME_NOT_FOUND') throw thrown;
}
