/** Volumes: create on nodes, find, delete. */
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import { type Context, timestamp } from './context.ts';
import { placeReplicas } from './placement.ts';
import { claims, names, nodes, type VolumeRecord, volumes } from './records.ts';
import { freeBytesByNode } from './registry.ts';
import { doomReplicas, type TombstoneCollector } from './tombstones.ts';
import { assertReady, inUse, newVolume } from './volume-state.ts';

export interface CreateVolumeRequest {
  /** Chosen by the caller, so that a repeated request can find what the first one made. */
  readonly id: string;
  readonly name: string;
  readonly sizeBytes: number;
  readonly replicaCount: number;
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
    const { events } = this.#context;
    events.publish({ type: 'volume.created', volumeId: volume.id });
    try {
      await this.#createReplicas(volume);
      const available = await this.#makeAvailable(volume.id);
      events.publish({ type: 'volume.available', volumeId: volume.id });
      return available;
    } catch (error) {
      await this.rollBack(volume.id);
      throw error;
    }
  }

  /**
   * Deletes a volume. Replicas on nodes that are online are gone when this returns (within a bound), the others
   * are deleted when their node is back. Throws BW_VOLUME_NOT_FOUND, BW_VOLUME_IN_USE, BW_VOLUME_NOT_READY.
   */
  async delete(id: string): Promise<void> {
    const removed = await this.#remove(id, (volume) => {
      assertReady(volume);
      if (volume.attachmentId !== null) throw inUse(volume);
    });
    if (removed === null) throw volumeNotFound(id);
    await this.#collect(removed);
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
  #reserve({ id, name, sizeBytes, replicaCount }: CreateVolumeRequest): Promise<VolumeRecord> {
    const { store } = this.#context;
    return commitRound(store, async () => {
      const taken = await names.get(store, name);
      if (taken !== null) {
        throw new BlockwireError('BW_VOLUME_NAME_TAKEN', `there is a volume named ${name} already`, {
          details: { name, volume: taken.value.volumeId },
        });
      }
      const candidates = (await freeBytesByNode(this.#context)).filter(({ online }) => online);
      const nodeIds = placeReplicas({ candidates, replicaCount, sizeBytes });
      const volume = newVolume({ id, name, sizeBytes, nodeIds, createdAt: timestamp(this.#context) });
      const claimChanges = nodeIds.map((nodeId) => {
        const { claimedBytes, claimVersion } = candidates.find((candidate) => candidate.nodeId === nodeId)!;
        return claims.replace(nodeId, claimVersion, { claimedBytes: claimedBytes + sizeBytes });
      });
      return {
        changes: [volumes.create(id, volume), names.create(name, { volumeId: id }), ...claimChanges],
        result: volume,
      };
    });
  }

  async #createReplicas(volume: VolumeRecord): Promise<void> {
    const { nodeFleet, timing } = this.#context;
    const { id: volumeId, sizeBytes, generation, epoch } = volume;
    const outcomes = await Promise.all(
      volume.replicas.map(async ({ nodeId }) => {
        try {
          await nodeFleet.dispatch(
            nodeId,
            { kind: 'createReplica', volumeId, sizeBytes, generation, epoch },
            { deadlineMs: timing.createReplicaMs },
          );
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
      return { changes: [volumes.replace(id, found.version, available)], result: available };
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
      };
    });
  }

  async #collect(volume: VolumeRecord): Promise<void> {
    this.#context.events.publish({ type: 'volume.deleted', volumeId: volume.id });
    const { promise: bound, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, this.#context.timing.deleteReplicaMs);
    const collections = volume.replicas.map(({ nodeId }) => this.#tombstones.collectNode(nodeId));
    await Promise.race([Promise.all(collections), bound]);
    clearTimeout(timer);
  }
}

export function volumeNotFound(id: string): BlockwireError {
  return new BlockwireError('BW_VOLUME_NOT_FOUND', `there is no volume ${id}`, { details: { volume: id } });
}
