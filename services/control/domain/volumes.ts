/** Volumes: create on nodes, find, delete. */
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import { type Context, timestamp } from './context.ts';
import { placeReplicas } from './placement.ts';
import { attachments, claims, names, nodes, type VolumeRecord, volumes } from './records.ts';
import { freeBytesByNode } from './registry.ts';
import { readySnapshot, snapshotsOf } from './snapshot-state.ts';
import { doomReplicas, type TombstoneCollector } from './tombstones.ts';
import { assertReady, inUse, newVolume, writtenReplicas } from './volume-state.ts';

export interface CreateVolumeRequest {
  /** Chosen by the caller, so that a repeated request can find what the first one made. */
  readonly id: string;
  readonly name: string;
  readonly sizeBytes: number;
  /** For a clone at most as many as have the snapshot. */
  readonly replicaCount: number;
  /** What the volume begins with; absent: zeros. */
  readonly source?: { readonly volumeId: string; readonly snapshot: string };
}

export class Volumes {
  readonly #context: Context;
  readonly #tombstones: TombstoneCollector;

  constructor(context: Context, tombstones: TombstoneCollector) {
    this.#context = context;
    this.#tombstones = tombstones;
  }

  /** Throws BW_VOLUME_NOT_FOUND. */
  async get(id: string): Promise<VolumeRecord> {
    const found = await volumes.get(this.#context.store, id);
    if (found === null) throw volumeNotFound(id);
    return found.value;
  }

  /** All volumes by id, or the one of that name, if any. */
  async list(filter: { readonly name?: string | undefined } = {}): Promise<VolumeRecord[]> {
    const { store } = this.#context;
    if (filter.name === undefined) return (await volumes.list(store)).map(({ value }) => value);
    const entry = await names.get(store, filter.name);
    const found = entry === null ? null : await volumes.get(store, entry.value.volumeId);
    return found === null ? [] : [found.value];
  }

  /**
   * Makes a volume; when it returns, every replica exists and can be opened. When a node fails, nothing is
   * left but tombstones. Throws BW_VOLUME_NAME_TAKEN, the errors of placement, or the failing node's error.
   */
  async create(request: CreateVolumeRequest): Promise<VolumeRecord> {
    await this.#waitForNodes(request.replicaCount);
    const volume = await this.#reserve(request);
    try {
      await this.#createReplicas(volume, request.source);
      return await this.#makeAvailable(volume.id);
    } catch (error) {
      await this.rollBack(volume.id);
      throw error;
    }
  }

  /**
   * Deletes a volume. Replicas on nodes that are online are gone when this returns (within a bound), the others
   * are deleted when their node is back. Throws BW_VOLUME_NOT_FOUND, BW_VOLUME_IN_USE, BW_VOLUME_NOT_READY,
   * BW_VOLUME_HAS_SNAPSHOTS unless they may go with it.
   */
  async delete(id: string, options: { readonly withSnapshots: boolean }): Promise<void> {
    const removed = await this.#remove(id, (volume) => {
      assertReady(volume);
      if (volume.attachmentId !== null) throw inUse(volume);
      if (!options.withSnapshots) assertNoSnapshots(volume);
    });
    if (removed === null) throw volumeNotFound(id);
    await this.#collect(removed);
  }

  /**
   * Makes a volume larger: every in-sync replica first, then the volume, then the device it is attached as. Safe to
   * repeat, and to be repeated when it fails half way: a replica that is larger than its volume does no harm.
   *
   * Throws BW_VOLUME_NOT_FOUND, BW_VOLUME_NOT_READY, BW_INVALID_ARGUMENT for a smaller size, BW_NOT_ENOUGH_SPACE, a
   * node's error or the agent's.
   */
  async resize(id: string, sizeBytes: number): Promise<VolumeRecord> {
    const before = await this.get(id);
    assertReady(before);
    if (sizeBytes < before.sizeBytes) {
      throw new BlockwireError(
        'BW_INVALID_ARGUMENT',
        `volume ${before.name} has ${before.sizeBytes} bytes already; volumes only grow`,
        { details: { volume: id, sizeBytes: before.sizeBytes } },
      );
    }
    await this.#assertRoom(before, sizeBytes - before.sizeBytes);
    const volume = await this.#grow(before, sizeBytes);
    const { agentFleet, store, timing } = this.#context;
    const attachment =
      volume.attachmentId === null ? null : await attachments.get(store, volume.attachmentId);
    if (attachment?.value.state === 'attached') {
      const { id: attachmentId, agentId } = attachment.value;
      await agentFleet.dispatch(
        agentId,
        { kind: 'resize', attachmentId, volumeId: id, sizeBytes: volume.sizeBytes },
        { deadlineMs: timing.resizeMs },
      );
    }
    return volume;
  }

  /** Removes a volume whose creation did not end well. Safe to repeat. */
  async rollBack(id: string): Promise<void> {
    const removed = await this.#remove(id, () => {});
    // Not awaited: the node that failed the creation would hold up the answer once more.
    if (removed !== null) void this.#collect(removed);
  }

  /** When too few nodes are online, waits a little for known ones that may be reconnecting. */
  async #waitForNodes(replicaCount: number): Promise<void> {
    const { store, nodeFleet } = this.#context;
    if (nodeFleet.onlineIds().length >= replicaCount) return;
    const known = await nodes.list(store);
    await Promise.all(known.map(({ value }) => nodeFleet.waitOnline(value.id)));
  }

  /** Places the volume and claims its name and space, in one commit. */
  #reserve({ id, name, sizeBytes, replicaCount, source }: CreateVolumeRequest): Promise<VolumeRecord> {
    const { store } = this.#context;
    return commitRound(store, async () => {
      const taken = await names.get(store, name);
      if (taken !== null) {
        throw new BlockwireError('BW_VOLUME_NAME_TAKEN', `there is a volume named ${name} already`, {
          details: { name, volume: taken.value.volumeId },
        });
      }
      const holders = source === undefined ? null : await this.#holdersOf(source, sizeBytes);
      const candidates = (await freeBytesByNode(this.#context)).filter(
        ({ nodeId, online, draining }) => online && !draining && (holders?.includes(nodeId) ?? true),
      );
      const nodeIds = placeReplicas({ candidates, replicaCount, sizeBytes });
      const volume = newVolume({ id, name, sizeBytes, nodeIds, createdAt: timestamp(this.#context) });
      const claimChanges = nodeIds.map((nodeId) => {
        const { claimedBytes, claimVersion } = candidates.find((candidate) => candidate.nodeId === nodeId)!;
        return claims.replace(nodeId, claimVersion, { claimedBytes: claimedBytes + sizeBytes });
      });
      return {
        changes: [volumes.create(id, volume), names.create(name, { volumeId: id }), ...claimChanges],
        result: volume,
        events: [{ type: 'volume.created', volume: id }],
      };
    });
  }

  /** The nodes on which the source of a clone is. Throws BW_VOLUME_NOT_FOUND, BW_SNAPSHOT_NOT_FOUND, BW_INVALID_ARGUMENT. */
  async #holdersOf(
    source: NonNullable<CreateVolumeRequest['source']>,
    sizeBytes: number,
  ): Promise<readonly string[]> {
    const snapshot = readySnapshot(await this.get(source.volumeId), source.snapshot);
    if (sizeBytes < snapshot.sizeBytes) {
      throw new BlockwireError(
        'BW_INVALID_ARGUMENT',
        `a clone has no less than the ${snapshot.sizeBytes} bytes of its snapshot`,
        { details: { sizeBytes: snapshot.sizeBytes } },
      );
    }
    return snapshot.nodeIds;
  }

  async #assertRoom(volume: VolumeRecord, addedBytes: number): Promise<void> {
    const spaces = await freeBytesByNode(this.#context);
    for (const { nodeId } of volume.replicas) {
      const space = spaces.find((candidate) => candidate.nodeId === nodeId);
      if (space === undefined || space.freeBytes >= addedBytes) continue;
      throw new BlockwireError(
        'BW_NOT_ENOUGH_SPACE',
        `node ${nodeId} has ${space.freeBytes} bytes free, ${addedBytes} more are needed`,
        { details: { node: nodeId, freeBytes: space.freeBytes } },
      );
    }
  }

  /** Replicas first, then the record; again when replicas came in meanwhile that have not grown. */
  async #grow(before: VolumeRecord, sizeBytes: number): Promise<VolumeRecord> {
    let volume = before;
    for (;;) {
      const grown = await this.#growReplicas(volume, sizeBytes);
      const claimed = await this.#claimGrowth(volume.id, sizeBytes, grown);
      if (claimed !== null) return claimed;
      volume = await this.get(volume.id);
    }
  }

  /**
   * Stale replicas grow if they can be reached; before they are rebuilt they have to. Returns the nodes where the replica
   * has the size.
   */
  async #growReplicas(volume: VolumeRecord, sizeBytes: number): Promise<ReadonlySet<string>> {
    const { nodeFleet, timing, log } = this.#context;
    const needed = writtenReplicas(volume);
    const grown = new Set<string>();
    await Promise.all(
      volume.replicas.map(async (replica) => {
        const { nodeId } = replica;
        const isNeeded = needed.includes(replica);
        try {
          if (isNeeded) await nodeFleet.waitOnline(nodeId);
          await nodeFleet.dispatch(
            nodeId,
            { kind: 'resizeReplica', volumeId: volume.id, sizeBytes },
            { deadlineMs: timing.resizeMs },
          );
          grown.add(nodeId);
        } catch (thrown) {
          const error = toBlockwireError(thrown);
          if (isNeeded) {
            throw new BlockwireError(
              error.code,
              `volume ${volume.name} was not resized: node ${nodeId}: ${error.message}`,
              { cause: error, details: { node: nodeId } },
            );
          }
          log.warn({ volumeId: volume.id, nodeId, reason: error.message }, 'a stale replica did not grow');
        }
      }),
    );
    return grown;
  }

  /**
   * One commit makes the volume larger and claims the space; a size that is there already changes nothing. Null when a
   * replica that gets writes has not grown.
   */
  #claimGrowth(id: string, sizeBytes: number, grown: ReadonlySet<string>): Promise<VolumeRecord | null> {
    const { store } = this.#context;
    return commitRound<VolumeRecord | null>(store, async () => {
      const found = await volumes.get(store, id);
      if (found === null) throw volumeNotFound(id);
      if (writtenReplicas(found.value).some(({ nodeId }) => !grown.has(nodeId))) {
        return { changes: [], result: null };
      }
      const addedBytes = sizeBytes - found.value.sizeBytes;
      if (addedBytes <= 0) return { changes: [], result: found.value };
      const larger: VolumeRecord = { ...found.value, sizeBytes };
      const claimChanges = await Promise.all(
        found.value.replicas.map(async ({ nodeId }) => {
          const claim = await claims.get(store, nodeId);
          const claimedBytes = (claim?.value.claimedBytes ?? 0) + addedBytes;
          return claims.replace(nodeId, claim?.version ?? 0, { claimedBytes });
        }),
      );
      return {
        changes: [volumes.replace(id, found.version, larger), ...claimChanges],
        result: larger,
        events: [{ type: 'volume.resized', volume: id, sizeBytes }],
      };
    });
  }

  async #createReplicas(volume: VolumeRecord, source: CreateVolumeRequest['source']): Promise<void> {
    const { nodeFleet, timing } = this.#context;
    const { id: volumeId, sizeBytes, generation, epoch } = volume;
    const outcomes = await Promise.all(
      volume.replicas.map(async ({ nodeId }) => {
        try {
          const deadline = { deadlineMs: timing.createReplicaMs };
          const common = { volumeId, generation, epoch };
          if (source === undefined) {
            await nodeFleet.dispatch(nodeId, { kind: 'createReplica', sizeBytes, ...common }, deadline);
            return null;
          }
          const { volumeId: sourceVolumeId, snapshot } = source;
          const clone = { kind: 'cloneReplica', sourceVolumeId, snapshot, ...common } as const;
          await nodeFleet.dispatch(nodeId, clone, deadline);
          await nodeFleet.dispatch(nodeId, { kind: 'resizeReplica', volumeId, sizeBytes }, deadline);
          return null;
        } catch (thrown) {
          return { nodeId, error: toBlockwireError(thrown) };
        }
      }),
    );
    const failed = outcomes.find((outcome) => outcome !== null);
    if (failed) {
      const { nodeId, error } = failed;
      throw new BlockwireError(
        error.code,
        `volume ${volume.name} was not created: node ${nodeId}: ${error.message}`,
        { cause: error, details: { node: nodeId } },
      );
    }
  }

  #makeAvailable(id: string): Promise<VolumeRecord> {
    const { store } = this.#context;
    return commitRound(store, async () => {
      const found = await volumes.get(store, id);
      if (found === null) throw volumeNotFound(id);
      const available: VolumeRecord = { ...found.value, state: 'available' };
      return {
        changes: [volumes.replace(id, found.version, available)],
        result: available,
        events: [{ type: 'volume.available', volume: id }],
      };
    });
  }

  /** One commit takes the record and the name and dooms the replicas. Null when there is no such volume. */
  #remove(id: string, assertRemovable: (volume: VolumeRecord) => void): Promise<VolumeRecord | null> {
    const { store } = this.#context;
    return commitRound(store, async () => {
      const found = await volumes.get(store, id);
      if (found === null) return { changes: [], result: null };
      assertRemovable(found.value);
      const name = await names.get(store, found.value.name);
      return {
        changes: [
          volumes.remove(id, found.version),
          names.remove(found.value.name, name?.version ?? 0),
          ...doomReplicas(this.#context, found.value),
        ],
        result: found.value,
        events: [{ type: 'volume.deleted', volume: id }],
      };
    });
  }

  async #collect(volume: VolumeRecord): Promise<void> {
    const { promise: bound, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, this.#context.timing.deleteReplicaMs);
    const collections = volume.replicas.map(({ nodeId }) => this.#tombstones.collectNode(nodeId));
    await Promise.race([Promise.all(collections), bound]);
    clearTimeout(timer);
  }
}

function assertNoSnapshots(volume: VolumeRecord): void {
  const names = snapshotsOf(volume).flatMap(({ name, state }) => (state === 'deleting' ? [] : [name]));
  if (names.length === 0) return;
  throw new BlockwireError(
    'BW_VOLUME_HAS_SNAPSHOTS',
    `volume ${volume.name} has ${names.length} snapshots, which would go with it; delete them first, or say so`,
    { details: { volume: volume.id, snapshots: names } },
  );
}

export function volumeNotFound(id: string): BlockwireError {
  return new BlockwireError('BW_VOLUME_NOT_FOUND', `there is no volume ${id}`, { details: { volume: id } });
}
