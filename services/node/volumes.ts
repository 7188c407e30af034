/** What a node does with volumes: the store and the data plane together, one command of a volume at a time. */
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { Replica, ReplicaStore } from './store/replica-store.ts';

/** What volumes need of the data plane (data/data-plane.ts). */
export interface VolumeServer {
  add(volume: { id: string; fd: number; sizeBytes: number; generation: number }): Promise<void>;
  remove(id: string): Promise<void>;
  fence(id: string, generation: number): Promise<void>;
}

export interface EpochRequest {
  readonly volumeId: string;
  readonly generation: number;
  readonly epoch: number;
}

export class Volumes {
  readonly #store: ReplicaStore;
  readonly #server: VolumeServer;
  readonly #log: Logger;
  /** Volumes whose file failed, with the errno; cleared by a restart. */
  readonly #failed = new Map<string, number>();
  /** The last command of each volume: the next one waits for it. */
  readonly #tails = new Map<string, Promise<unknown>>();

  constructor(options: { store: ReplicaStore; server: VolumeServer; log: Logger }) {
    this.#store = options.store;
    this.#server = options.server;
    this.#log = options.log;
  }

  /** Serves every replica that the store could open. */
  async serveAll(): Promise<void> {
    for (const replica of this.#store.replicas.values()) await this.#serve(replica);
  }

  /** Creates and serves a replica. Safe to repeat. Throws what ReplicaStore.create throws. */
  create(request: EpochRequest & { readonly sizeBytes: number }): Promise<void> {
    return this.#inTurn(request.volumeId, async () => {
      const { volumeId, sizeBytes, generation, epoch } = request;
      const replica = this.#store.create({ volumeId, sizeBytes, generation, epoch });
      if (replica === null) return;
      await this.#serve(replica);
      this.#log.info({ volume: volumeId, sizeBytes }, 'replica created');
    });
  }

  /** Cuts the connections, then deletes. Safe to repeat. */
  delete(volumeId: string): Promise<void> {
    return this.#inTurn(volumeId, async () => {
      if (this.#store.replicas.has(volumeId)) await this.#server.remove(volumeId);
      this.#store.delete(volumeId);
      this.#failed.delete(volumeId);
      this.#log.info({ volume: volumeId }, 'replica deleted');
    });
  }

  /**
   * Persists generation and epoch first; then a higher generation cuts older connections. Resolves when none of their
   * writes is at work any more: from then on the old writer changes nothing here.
   */
  installEpoch(request: EpochRequest): Promise<void> {
    const { volumeId, generation, epoch } = request;
    return this.#inTurn(volumeId, async () => {
      this.#store.installEpoch(volumeId, generation, epoch);
      // Also when it is not news: the process may have ended between the two steps.
      await this.#server.fence(volumeId, generation);
    });
  }

  noteFailure(volumeId: string, errno: number): void {
    this.#failed.set(volumeId, errno);
  }

  /** Per volume that is not well: what is wrong. */
  problems(): Record<string, string> {
    const problems: Record<string, string> = {};
    for (const [id, errno] of this.#failed) problems[id] = `the data file failed with errno ${errno}`;
    for (const [id, damage] of this.#store.damaged) problems[id] = damage.message;
    return problems;
  }

  async #serve(replica: Replica): Promise<void> {
    const { volumeId, sizeBytes, generation } = replica.descriptor;
    await this.#server.add({ id: volumeId, fd: replica.fd, sizeBytes, generation });
  }

  async #inTurn(volumeId: string, action: () => Promise<void>): Promise<void> {
    const before = this.#tails.get(volumeId) ?? Promise.resolve();
    const own = before.then(action, action);
    const tail = own.catch(() => undefined);
    this.#tails.set(volumeId, tail);
    try {
      await own;
    } catch (error) {
      throw error instanceof BlockwireError ? error : toBlockwireError(error, 'BW_INTERNAL');
    } finally {
      if (this.#tails.get(volumeId) === tail) this.#tails.delete(volumeId);
    }
  }
}
