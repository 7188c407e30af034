/** What a node does with volumes: the store and the data plane together, one command of a volume at a time. */
import { fdatasync } from 'node:fs';
import { promisify } from 'node:util';
import { errnoName } from '@blockwire/native/errors.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { ReadChunk, RunningCopy } from './data/copies.ts';
import type { CopyOrder } from './data/messages.ts';
import type { InstallOrder } from './replication/admission.ts';
import type { ByteRange } from './replication/fresh.ts';
import { endsCopies, type Installation, prepareInstallation } from './replication/membership.ts';
import { type RebuildOrder, type RebuildReport, type ResyncOrder, Resyncs } from './resync/resyncs.ts';
import { type ScrubReport, Scrubs, type ScrubsHost } from './resync/scrubs.ts';
import { installedOf } from './store/descriptor.ts';
import { dirtyRegions, recoverReplica } from './store/recovery.ts';
import { type ReplicaFiles, readRegions } from './store/replica-files.ts';
import type { ReplicaStore } from './store/replica-store.ts';
import type { Replica } from './store/snapshots.ts';
import { EBADMSG } from './worker/disk-errors.ts';
import type { VolumeOptions } from './worker/volume.ts';

/** What volumes need of the data plane (data/data-plane.ts). */
export interface VolumeServer {
  add(volume: VolumeOptions): Promise<void>;
  remove(id: string): Promise<void>;
  install(id: string, installation: Installation): Promise<void>;
  hold(id: string): Promise<void>;
  unhold(id: string): Promise<void>;
  resize(id: string, sizeBytes: number): Promise<void>;
  copy(order: Omit<CopyOrder, 'request' | 'window'>, read: ReadChunk): RunningCopy;
  peek(id: string, range: ByteRange, into: Uint8Array, isAlone: boolean): Promise<boolean>;
}

const syncData = promisify(fdatasync);

export interface EpochRequest {
  readonly volumeId: string;
  readonly generation: number;
  readonly epoch: number;
}

export interface SnapshotRequest {
  readonly volumeId: string;
  readonly snapshot: string;
}

export interface CloneRequest extends EpochRequest {
  readonly sourceVolumeId: string;
  readonly snapshot: string;
}

export class Volumes {
  readonly resyncs: Resyncs;
  readonly scrubs: Scrubs;
  readonly #store: ReplicaStore;
  readonly #server: VolumeServer;
  readonly #log: Logger;
  /** Volumes whose file failed, with the errno; cleared by a restart. */
  readonly #failed = new Map<string, number>();
  readonly #served = new Set<string>();
  /** The last command of each volume: the next one waits for it. */
  readonly #tails = new Map<string, Promise<unknown>>();

  constructor(options: { store: ReplicaStore; server: VolumeServer; log: Logger }) {
    this.#store = options.store;
    this.#server = options.server;
    this.#log = options.log;
    const { store, server, log } = options;
    const host: ScrubsHost = {
      installed: (id) => store.installed(id),
      sizeBytes: (id) => store.get(id).descriptor.sizeBytes,
      // Durable before the first write of a region, so the file has them all.
      writtenRegions: (id) => readRegions(store.get(id)).since(0),
      copy: (order, read) => server.copy(order, read),
      peek: (id, range, into, isAlone) => server.peek(id, range, into, isAlone),
    };
    this.resyncs = new Resyncs(host, log);
    this.scrubs = new Scrubs(host, log);
  }

  /**
   * Serves every replica that the store could open: at once those that were closed cleanly, then, one after the other,
   * those whose checksums have to be computed anew.
   */
  async serveAll(): Promise<void> {
    const unclean: Replica[] = [];
    for (const replica of [...this.#store.replicas.values()]) {
      if (isClean(replica)) await this.#serveFound(replica);
      else unclean.push(replica);
    }
    let before = Promise.resolve();
    for (const replica of unclean) {
      const earlier = before;
      // Its commands wait for it from now on.
      before = this.#inTurn(replica.descriptor.volumeId, async () => {
        await earlier;
        await this.#serveFound(replica);
      });
    }
    await before;
  }

  /** What fails concerns this replica alone. */
  async #serveFound(replica: Replica): Promise<void> {
    try {
      await this.#serve(replica);
    } catch (error) {
      this.#store.reject(replica.descriptor.volumeId, toBlockwireError(error, 'BW_REPLICA_DAMAGED'));
    }
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
      await this.resyncs.cancel(volumeId, 'the replica is being removed');
      await this.scrubs.cancel(volumeId, 'the replica is being removed');
      const replica = this.#store.replicas.get(volumeId);
      if (replica !== undefined) {
        for (const name of replica.snapshots.keys()) await this.#server.remove(exportOf(volumeId, name));
        await this.#server.remove(volumeId);
      }
      this.#store.delete(volumeId);
      this.#failed.delete(volumeId);
      this.#served.delete(volumeId);
      this.#log.info({ volume: volumeId }, 'replica deleted');
    });
  }

  /**
   * Persists what the order makes of the replica; then a higher generation, or a new rebuild, cuts connections. Resolves
   * when none of their writes is at work any more: from then on the old writer changes nothing here. Throws what
   * afterInstall throws.
   */
  installEpoch(volumeId: string, order: InstallOrder): Promise<void> {
    return this.#inTurn(volumeId, async () => {
      const before = this.#store.installed(volumeId);
      const installation = prepareInstallation(before, order);
      const { installed } = installation;
      this.#store.install(volumeId, installed);
      // What has not come to the worker yet, which ends the others.
      if (endsCopies(before, installed)) {
        this.resyncs.abort(volumeId, 'the membership has changed');
        this.scrubs.abort(volumeId, 'the membership has changed');
      }
      await this.resyncs.cancelReconcile(volumeId, 'a membership is installed');
      // Also when it is not news: the process may have ended between the two steps.
      await this.#server.install(volumeId, installation);
    });
  }

  /**
   * Snapshots a replica: writes wait for the moment of the cloning. Safe to repeat. Throws BW_SNAPSHOT_UNSUPPORTED,
   * BW_REPLICA_NOT_FOUND.
   */
  createSnapshot(request: SnapshotRequest): Promise<void> {
    const { volumeId, snapshot } = request;
    return this.#inTurn(volumeId, async () => {
      const replica = this.#store.get(volumeId);
      // What is written back before need not be while writes wait.
      await syncData(replica.fd);
      await this.#server.hold(volumeId);
      let files: ReplicaFiles | null;
      try {
        files = await this.#store.createSnapshot(volumeId, snapshot, !this.#failed.has(volumeId));
      } finally {
        await this.#server.unhold(volumeId);
      }
      if (files === null) return;
      await this.#serveFiles(files);
      this.#log.info({ volume: volumeId, snapshot }, 'snapshot created');
    });
  }

  /** Safe to repeat: a missing snapshot is success, a missing replica too. */
  deleteSnapshot(request: SnapshotRequest): Promise<void> {
    const { volumeId, snapshot } = request;
    return this.#inTurn(volumeId, async () => {
      const replica = this.#store.replicas.get(volumeId);
      if (replica === undefined) return;
      if (replica.snapshots.has(snapshot)) await this.#server.remove(exportOf(volumeId, snapshot));
      this.#store.deleteSnapshot(volumeId, snapshot);
      this.#log.info({ volume: volumeId, snapshot }, 'snapshot deleted');
    });
  }

  /** A new replica from a snapshot of this node. Safe to repeat. Throws what ReplicaStore.cloneFromSnapshot throws. */
  clone(request: CloneRequest): Promise<void> {
    const { volumeId, sourceVolumeId, snapshot } = request;
    const cloned = (): Promise<void> =>
      this.#inTurn(volumeId, async () => {
        const source = { volumeId: sourceVolumeId, snapshot };
        const replica = await this.#store.cloneFromSnapshot(source, request);
        if (replica === null) return;
        await this.#serve(replica);
        this.#log.info({ volume: volumeId, source: exportOf(sourceVolumeId, snapshot) }, 'replica cloned');
      });
    // In the turn of the source, whose snapshot must not go meanwhile.
    return sourceVolumeId === volumeId ? cloned() : this.#inTurn(sourceVolumeId, cloned);
  }

  /** Makes a replica larger. Safe to repeat. Throws what ReplicaStore.resize throws. */
  resize(request: { readonly volumeId: string; readonly sizeBytes: number }): Promise<void> {
    const { volumeId, sizeBytes } = request;
    return this.#inTurn(volumeId, async () => {
      // Also when it is not news: the process may have ended between the two steps.
      const grown = this.#store.resize(volumeId, sizeBytes);
      await this.#server.resize(volumeId, sizeBytes);
      if (grown) this.#log.info({ volume: volumeId, sizeBytes }, 'replica resized');
    });
  }

  /** Begins a rebuild, whose end is told to `ended`. Safe to repeat. Throws what Resyncs.rebuild throws. */
  rebuild(order: RebuildOrder, ended: (report: RebuildReport) => void): Promise<void> {
    return this.#inTurn(order.volumeId, async () => this.resyncs.rebuild(order, ended));
  }

  /** Resolves when it is durable. Commands that come meanwhile do not wait for it: one of them may end it. */
  async reconcile(order: ResyncOrder): Promise<void> {
    await this.#begun(order.volumeId, () => this.resyncs.reconcile(order));
  }

  /** As `reconcile`. */
  async repair(order: ResyncOrder, regions: readonly number[]): Promise<void> {
    await this.#begun(order.volumeId, () => this.resyncs.repair(order, regions));
    if (this.#failed.get(order.volumeId) === EBADMSG) this.#failed.delete(order.volumeId);
  }

  /** Begins a scrub, whose end is told to `ended`. Safe to repeat. Throws what Scrubs.start throws. */
  scrub(order: ResyncOrder, bytesPerSecond: number, ended: (report: ScrubReport) => void): Promise<void> {
    return this.#inTurn(order.volumeId, async () => this.scrubs.start(order, bytesPerSecond, ended));
  }

  /** Begins something in the volume's turn; resolves at its end. */
  async #begun(volumeId: string, begin: () => Promise<void>): Promise<void> {
    let ended: Promise<void> = Promise.resolve();
    await this.#inTurn(volumeId, async () => {
      ended = begin();
      // Awaited below; this only keeps an early end from counting as unhandled.
      ended.catch(() => {});
    });
    await ended;
  }

  /** Makes everything durable after the data plane has stopped. */
  seal(): void {
    this.#store.seal((volumeId) => this.#failed.has(volumeId) || !this.#served.has(volumeId));
  }

  noteFailure(volumeId: string, errno: number): void {
    this.#failed.set(volumeId, errno);
  }

  /** Per volume that is not well: what is wrong. */
  problems(): Record<string, string> {
    const problems: Record<string, string> = {};
    for (const [id, errno] of this.#failed) {
      problems[id] =
        errno === EBADMSG
          ? 'a block does not match its checksum; reads of it fail'
          : `the data file failed with ${errnoName(errno)}`;
    }
    for (const [id, damage] of this.#store.damaged) problems[id] = damage.message;
    return problems;
  }

  async #serve(replica: Replica): Promise<void> {
    await this.#serveFiles(replica);
    for (const snapshot of replica.snapshots.values()) await this.#serveFiles(snapshot);
  }

  async #serveFiles(files: ReplicaFiles): Promise<void> {
    const { volumeId, sizeBytes, snapshot } = files.descriptor;
    await recoverReplica(files, this.#log);
    const id = snapshot === null ? volumeId : exportOf(volumeId, snapshot);
    const { fd, checksumsFd, regionsFd } = files;
    const regions = readRegions(files).words;
    await this.#server.add({
      ...{ id, fd, checksumsFd, regionsFd, regions },
      ...{ sizeBytes, installed: snapshot === null ? installedOf(files.descriptor) : null },
    });
    this.#served.add(id);
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

/** Name of a snapshot's export. */
function exportOf(volumeId: string, snapshot: string): string {
  return `${volumeId}@${snapshot}`;
}

function isClean(replica: Replica): boolean {
  return [replica, ...replica.snapshots.values()].every(
    (files) => dirtyRegions(readRegions(files)).length === 0,
  );
}
