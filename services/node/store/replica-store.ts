/**
 * The replicas of a node on disk. One directory each; every change is made beside the name and renamed into place, so
 * that a crash leaves the old state or the new one (directories.ts).
 *
 *   DATA/lock                          flock: one node per data directory
 *   DATA/node.json                     the node's id
 *   DATA/replicas/vol-…/…              one replica's files: replica-files.ts
 *   DATA/replicas/vol-…/snapshots/…/…  the same of each snapshot
 *   .new-…, .deleted-… in either       left by a crash; removed at opening
 */
import { mkdirSync, statfsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { Installed } from '../replication/admission.ts';
import { type Descriptor, FORMAT_VERSION, installedOf, writeDescriptor } from './descriptor.ts';
import { directoriesIn, makeDirectory, makeDirectoryAsync, takeDirectory } from './directories.ts';
import { ioError, requireEpoch, requireName, requireSize } from './limits.ts';
import { lockDataDirectory } from './lock.ts';
import {
  closeReplicaFiles,
  createReplicaFiles,
  DATA_FILE,
  growReplicaFiles,
  openReplicaFiles,
  type ReplicaFiles,
  readRegions,
  sealReplicaFiles,
} from './replica-files.ts';
import { cloneSnapshot, makeSnapshot, openSnapshots, type Replica, removeSnapshot } from './snapshots.ts';

export interface ReplicaStoreOptions {
  readonly directory: string;
  /** What replicas may claim in all; null: what the file system has. */
  readonly capacityBytes: number | null;
  /** Names the machine's present boot: another one than at the last opening means that power may have failed. */
  readonly bootId: string;
  readonly log: Logger;
}

/** What a new replica is made of. */
export interface NewReplica {
  readonly volumeId: string;
  readonly sizeBytes: number;
  readonly generation: number;
  readonly epoch: number;
}

export class ReplicaStore {
  readonly #options: ReplicaStoreOptions;
  readonly #replicas = new Map<string, Replica>();
  /** Directories that cannot be served, and why. */
  readonly #damaged = new Map<string, BlockwireError>();
  readonly #unlock: () => void;
  readonly #root: string;

  /**
   * Opens every replica. A damaged one is logged and left out; the others are served. Throws BW_CONFLICT when another
   * node uses the directory.
   */
  constructor(options: ReplicaStoreOptions) {
    this.#options = options;
    this.#root = join(options.directory, 'replicas');
    mkdirSync(this.#root, { recursive: true });
    this.#unlock = lockDataDirectory(options.directory);
    for (const name of directoriesIn(this.#root)) this.#openFound(name);
  }

  get replicas(): ReadonlyMap<string, Replica> {
    return this.#replicas;
  }

  get damaged(): ReadonlyMap<string, BlockwireError> {
    return this.#damaged;
  }

  /** Bytes that replicas may claim in all. Without a set limit: what is free now and what replicas occupy already. */
  capacityBytes(): number {
    if (this.#options.capacityBytes !== null) return this.#options.capacityBytes;
    const { bavail, bsize } = statfsSync(this.#root);
    let occupied = 0;
    for (const { directory } of this.#replicas.values()) {
      occupied += statSync(join(directory, DATA_FILE)).blocks * 512;
    }
    return bavail * bsize + occupied;
  }

  /** Bytes that new replicas may still claim: replicas are thin, but every one may grow to its size. */
  freeBytes(): number {
    let claimed = 0;
    for (const { descriptor } of this.#replicas.values()) claimed += descriptor.sizeBytes;
    return Math.max(0, this.capacityBytes() - claimed);
  }

  /** Throws BW_REPLICA_NOT_FOUND, or BW_REPLICA_DAMAGED when it is there but cannot be used. */
  get(volumeId: string): Replica {
    const replica = this.#replicas.get(volumeId);
    if (replica !== undefined) return replica;
    const damage = this.#damaged.get(volumeId);
    if (damage !== undefined) throw damage;
    throw new BlockwireError('BW_REPLICA_NOT_FOUND', `this node has no replica of ${volumeId}`);
  }

  /**
   * Creates a replica, durably. Null when it is there already with the same size. Throws BW_REPLICA_EXISTS when it is
   * there with another size, BW_NOT_ENOUGH_SPACE, BW_INVALID_ARGUMENT.
   */
  create(wanted: NewReplica): Replica | null {
    const { volumeId, sizeBytes } = wanted;
    requireName(volumeId, 'volume id');
    requireSize(sizeBytes);
    requireEpoch(wanted.epoch);
    if (this.#replicas.has(volumeId) || this.#damaged.has(volumeId)) {
      const existing = this.get(volumeId).descriptor.sizeBytes;
      if (existing === sizeBytes) return null;
      throw new BlockwireError(
        'BW_REPLICA_EXISTS',
        `a replica of ${volumeId} with ${existing} bytes is here`,
      );
    }
    this.#requireSpace(sizeBytes);
    try {
      makeDirectory(this.#root, volumeId, (partial) => {
        createReplicaFiles(partial, sizeBytes);
        writeDescriptor(partial, this.#descriptorOf(wanted));
      });
    } catch (error) {
      throw ioError(error, `creating a replica of ${volumeId}`);
    }
    return this.#open(volumeId);
  }

  /** Deletes a replica that nobody serves any more; missing is no error. */
  delete(volumeId: string): void {
    const replica = this.#replicas.get(volumeId);
    if (replica === undefined && !this.#damaged.has(volumeId)) return;
    let free: () => void;
    try {
      free = takeDirectory(this.#root, volumeId);
    } catch (error) {
      throw ioError(error, `deleting the replica of ${volumeId}`);
    }
    this.#replicas.delete(volumeId);
    for (const id of this.#damaged.keys()) {
      if (id === volumeId || id.startsWith(`${volumeId}@`)) this.#damaged.delete(id);
    }
    if (replica !== undefined) closeReplica(replica);
    free();
  }

  /** What is installed of a replica's membership. */
  installed(volumeId: string): Installed {
    return installedOf(this.get(volumeId).descriptor);
  }

  /** Persists what `prepare` (replication/membership.ts) has made of an order. */
  install(volumeId: string, installed: Installed): void {
    const replica = this.get(volumeId);
    const { descriptor } = replica;
    requireEpoch(installed.epoch);
    if (isDeepStrictEqual(installed, installedOf(descriptor))) return;
    this.#replaceDescriptor(replica, { ...descriptor, ...installed }, `installing an epoch of ${volumeId}`);
  }

  /**
   * Snapshots a replica whose writes are held. Null when the snapshot is there already. Throws BW_SNAPSHOT_UNSUPPORTED,
   * BW_INVALID_ARGUMENT.
   * @param sound false when operations on the data failed: checksums may not match, and are computed anew at opening
   */
  async createSnapshot(volumeId: string, name: string, sound: boolean): Promise<ReplicaFiles | null> {
    requireName(name, 'snapshot name');
    const replica = this.get(volumeId);
    if (replica.snapshots.has(name)) return null;
    try {
      return await makeSnapshot(replica, name, sound);
    } catch (error) {
      throw ioError(error, `making the snapshot ${name} of ${volumeId}`);
    }
  }

  /** Deletes a snapshot that nobody serves any more; missing is no error. */
  deleteSnapshot(volumeId: string, name: string): void {
    requireName(name, 'snapshot name');
    const replica = this.get(volumeId);
    this.#damaged.delete(`${volumeId}@${name}`);
    try {
      removeSnapshot(replica, name);
    } catch (error) {
      throw ioError(error, `deleting the snapshot ${name} of ${volumeId}`);
    }
  }

  /**
   * A new replica with the content of a snapshot, sharing its blocks. Null when it is there already with the same size.
   * What the snapshot holds counts as written in the new volume's epoch. Throws what `create` throws, BW_NOT_FOUND and
   * BW_SNAPSHOT_UNSUPPORTED.
   */
  async cloneFromSnapshot(
    source: { readonly volumeId: string; readonly snapshot: string },
    wanted: { readonly volumeId: string; readonly generation: number; readonly epoch: number },
  ): Promise<Replica | null> {
    const { volumeId, generation, epoch } = wanted;
    requireName(volumeId, 'volume id');
    requireEpoch(epoch);
    const files = this.get(source.volumeId).snapshots.get(source.snapshot);
    if (files === undefined) {
      throw new BlockwireError('BW_NOT_FOUND', `${source.volumeId} has no snapshot ${source.snapshot} here`);
    }
    const { sizeBytes } = files.descriptor;
    if (this.#replicas.has(volumeId) || this.#damaged.has(volumeId)) {
      if (this.get(volumeId).descriptor.sizeBytes === sizeBytes) return null;
      throw new BlockwireError('BW_REPLICA_EXISTS', `a replica of ${volumeId} with another size is here`);
    }
    this.#requireSpace(sizeBytes);
    try {
      await makeDirectoryAsync(this.#root, volumeId, async (partial) => {
        await cloneSnapshot(files, partial, epoch);
        writeDescriptor(partial, this.#descriptorOf({ volumeId, sizeBytes, generation, epoch }));
      });
    } catch (error) {
      throw ioError(error, `cloning ${source.volumeId}@${source.snapshot}`);
    }
    return this.#open(volumeId);
  }

  /**
   * Makes a replica larger, durably. False when it has that size. Throws BW_INVALID_ARGUMENT for a smaller one,
   * BW_NOT_ENOUGH_SPACE.
   */
  resize(volumeId: string, sizeBytes: number): boolean {
    requireSize(sizeBytes);
    const replica = this.get(volumeId);
    const { descriptor } = replica;
    if (sizeBytes === descriptor.sizeBytes) return false;
    if (sizeBytes < descriptor.sizeBytes) {
      throw new BlockwireError(
        'BW_INVALID_ARGUMENT',
        `${volumeId} has ${descriptor.sizeBytes} bytes; it cannot shrink`,
      );
    }
    this.#requireSpace(sizeBytes - descriptor.sizeBytes);
    const doing = `resizing the replica of ${volumeId}`;
    try {
      growReplicaFiles(replica, sizeBytes);
    } catch (error) {
      throw ioError(error, doing);
    }
    this.#replaceDescriptor(replica, { ...descriptor, sizeBytes }, doing);
    return true;
  }

  /**
   * After the last write of a clean stop: makes everything durable, so that the next opening recomputes nothing. Replicas
   * whose files failed are left as they are.
   */
  seal(failed: (volumeId: string) => boolean): void {
    for (const [volumeId, replica] of this.#replicas) {
      if (failed(volumeId)) continue;
      try {
        sealReplicaFiles(replica);
        // From here on the disk has everything: power may fail.
        this.#replaceDescriptor(replica, { ...replica.descriptor, bootId: null }, `closing ${volumeId}`);
      } catch (error) {
        this.#options.log.error(
          { volume: volumeId, err: error },
          'not sealed; the next start computes checksums anew',
        );
      }
    }
  }

  /** Closes everything and gives the directory free. */
  close(): void {
    for (const replica of this.#replicas.values()) closeReplica(replica);
    this.#replicas.clear();
    this.#unlock();
  }

  /** A replica turned out, after its opening, to be one that cannot be served. */
  reject(volumeId: string, damage: BlockwireError): void {
    const replica = this.#replicas.get(volumeId);
    if (replica !== undefined) closeReplica(replica);
    this.#replicas.delete(volumeId);
    this.#damaged.set(volumeId, damage);
    this.#options.log.error({ volume: volumeId, err: damage }, 'a replica is damaged and not served');
  }

  #requireSpace(wantedBytes: number): void {
    const freeBytes = this.freeBytes();
    if (wantedBytes <= freeBytes) return;
    throw new BlockwireError(
      'BW_NOT_ENOUGH_SPACE',
      `${wantedBytes} bytes wanted, ${freeBytes} free on this node`,
    );
  }

  #openFound(name: string): void {
    try {
      this.#open(name);
    } catch (error) {
      const damage = toBlockwireError(error, 'BW_REPLICA_DAMAGED');
      this.#damaged.set(name, damage);
      this.#options.log.error({ volume: name, err: damage }, 'a replica is damaged and not served');
    }
  }

  #open(volumeId: string): Replica {
    const files = openReplicaFiles(join(this.#root, volumeId), volumeId, null);
    if (!files.direct) {
      this.#options.log.warn({ volume: volumeId }, 'the file system refuses O_DIRECT; using the page cache');
    }
    const replica: Replica = { ...files, snapshots: new Map() };
    this.#noteBoot(replica);
    this.#replicas.set(volumeId, replica);
    openSnapshots(replica, (name, error) => {
      const damage = toBlockwireError(error, 'BW_REPLICA_DAMAGED');
      this.#damaged.set(`${volumeId}@${name}`, damage);
      this.#options.log.error(
        { volume: volumeId, snapshot: name, err: damage },
        'a snapshot is damaged and not served',
      );
    });
    return replica;
  }

  /**
   * Writes are acknowledged once the kernel has them; only power takes them away. So a replica with intents that was not
   * closed before the machine booted again may lack what it had acknowledged.
   */
  #noteBoot(replica: Replica): void {
    const { bootId } = this.#options;
    const { descriptor } = replica;
    if (descriptor.bootId === bootId) return;
    const hadIntents = !readRegions(replica).intents().next().done;
    const isUnclean = descriptor.bootId !== null && hadIntents;
    const uncleanEpoch = descriptor.uncleanEpoch ?? (isUnclean ? descriptor.epoch : null);
    const doing = `opening the replica of ${descriptor.volumeId}`;
    this.#replaceDescriptor(replica, { ...descriptor, uncleanEpoch, bootId }, doing);
    if (isUnclean) {
      this.#options.log.warn(
        { volume: descriptor.volumeId, epoch: descriptor.epoch },
        'power failed before everything acknowledged was flushed',
      );
    }
  }

  #descriptorOf({ volumeId, sizeBytes, generation, epoch }: NewReplica): Descriptor {
    return {
      ...{ version: FORMAT_VERSION, volumeId, sizeBytes, generation, epoch, snapshot: null },
      ...{ role: 'inSync', joinedEpoch: epoch, uncleanEpoch: null, bootId: this.#options.bootId },
    };
  }

  #replaceDescriptor(replica: Replica, updated: Descriptor, doing: string): void {
    try {
      writeDescriptor(replica.directory, updated);
    } catch (error) {
      throw ioError(error, doing);
    }
    replica.descriptor = updated;
  }
}

function closeReplica(replica: Replica): void {
  for (const files of [replica, ...replica.snapshots.values()]) closeReplicaFiles(files);
}
