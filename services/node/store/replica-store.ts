/**
 * The replicas of a node on disk. One directory each; every change is made beside the name and renamed into place, so
 * that a crash leaves the old state or the new one.
 *
 *   DATA/lock                          flock: one node per data directory
 *   DATA/node.json                     the node's id
 *   DATA/replicas/vol-…/…              one replica's files: replica-files.ts
 *   DATA/replicas/vol-…/snapshots/…/…  the same of each snapshot
 *   .new-…, .deleted-… in either       left by a crash; removed at opening
 */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statfsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { Installed } from '../replication/admission.ts';
import { type Descriptor, FORMAT_VERSION, installedOf, writeDescriptor } from './descriptor.ts';
import { lockDataDirectory } from './lock.ts';
import { EPOCH_MAX, REGION_DIRTY, type RegionTable } from './region-table.ts';
import { syncDirectory } from './replace-file.ts';
import {
  cloneReplicaFiles,
  closeReplicaFiles,
  createReplicaFiles,
  DATA_FILE,
  growReplicaFiles,
  openReplicaFiles,
  type ReplicaFiles,
  readRegions,
  sealReplicaFiles,
} from './replica-files.ts';

const SNAPSHOTS = 'snapshots';
/** Also an export name and a directory: no path, no hidden file, none of NBD's limits. */
const ID_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

export interface Replica extends ReplicaFiles {
  /** By name. */
  readonly snapshots: Map<string, ReplicaFiles>;
}

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
    for (const name of readdirSync(this.#root)) this.#openFound(name);
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
    const partial = join(this.#root, `.new-${volumeId}`);
    const directory = join(this.#root, volumeId);
    rmSync(partial, { recursive: true, force: true });
    mkdirSync(partial, { mode: 0o700 });
    try {
      createReplicaFiles(partial, sizeBytes);
      writeDescriptor(partial, this.#descriptorOf(wanted));
      renameSync(partial, directory);
      syncDirectory(this.#root);
    } catch (error) {
      rmSync(partial, { recursive: true, force: true });
      throw ioError(error, `creating a replica of ${volumeId}`);
    }
    return this.#open(volumeId);
  }

  /** Deletes a replica that nobody serves any more; missing is no error. */
  delete(volumeId: string): void {
    const replica = this.#replicas.get(volumeId);
    if (replica === undefined && !this.#damaged.has(volumeId)) return;
    const deleted = join(this.#root, `.deleted-${volumeId}`);
    try {
      rmSync(deleted, { recursive: true, force: true });
      renameSync(join(this.#root, volumeId), deleted);
      syncDirectory(this.#root);
    } catch (error) {
      throw ioError(error, `deleting the replica of ${volumeId}`);
    }
    this.#replicas.delete(volumeId);
    for (const id of this.#damaged.keys()) {
      if (id === volumeId || id.startsWith(`${volumeId}@`)) this.#damaged.delete(id);
    }
    if (replica !== undefined) closeReplica(replica);
    rmSync(deleted, { recursive: true, force: true });
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
    const root = join(replica.directory, SNAPSHOTS);
    const partial = join(root, `.new-${name}`);
    try {
      mkdirSync(root, { recursive: true, mode: 0o700 });
      rmSync(partial, { recursive: true, force: true });
      mkdirSync(partial, { mode: 0o700 });
      const regions = readRegions(replica);
      // Data and checksums are copied in one state; what was not durable of the source is durable here.
      if (sound) mapEntries(regions, (epoch, flags) => [epoch, flags & ~REGION_DIRTY]);
      await cloneReplicaFiles(replica.directory, partial, replica.descriptor.sizeBytes, regions);
      writeDescriptor(partial, { ...replica.descriptor, snapshot: name, bootId: null });
      renameSync(partial, join(root, name));
      syncDirectory(root);
      syncDirectory(replica.directory);
    } catch (error) {
      rmSync(partial, { recursive: true, force: true });
      throw ioError(error, `making the snapshot ${name} of ${volumeId}`);
    }
    return this.#openSnapshot(replica, name);
  }

  /** Deletes a snapshot that nobody serves any more; missing is no error. */
  deleteSnapshot(volumeId: string, name: string): void {
    requireName(name, 'snapshot name');
    const replica = this.get(volumeId);
    const root = join(replica.directory, SNAPSHOTS);
    this.#damaged.delete(`${volumeId}@${name}`);
    if (!existsSync(join(root, name))) return;
    const deleted = join(root, `.deleted-${name}`);
    try {
      rmSync(deleted, { recursive: true, force: true });
      renameSync(join(root, name), deleted);
      syncDirectory(root);
    } catch (error) {
      throw ioError(error, `deleting the snapshot ${name} of ${volumeId}`);
    }
    const files = replica.snapshots.get(name);
    replica.snapshots.delete(name);
    if (files !== undefined) closeReplicaFiles(files);
    rmSync(deleted, { recursive: true, force: true });
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
    const partial = join(this.#root, `.new-${volumeId}`);
    rmSync(partial, { recursive: true, force: true });
    mkdirSync(partial, { mode: 0o700 });
    try {
      const regions = readRegions(files);
      mapEntries(regions, (tag, flags) =>
        tag === 0 && flags === 0 ? [0, 0] : [epoch, flags & REGION_DIRTY],
      );
      await cloneReplicaFiles(files.directory, partial, sizeBytes, regions);
      writeDescriptor(partial, this.#descriptorOf({ volumeId, sizeBytes, generation, epoch }));
      renameSync(partial, join(this.#root, volumeId));
      syncDirectory(this.#root);
    } catch (error) {
      rmSync(partial, { recursive: true, force: true });
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
    if (name.startsWith('.')) {
      rmSync(join(this.#root, name), { recursive: true, force: true });
      return;
    }
    try {
      this.#open(name);
    } catch (error) {
      const damage = toBlockwireError(error, 'BW_REPLICA_DAMAGED');
      this.#damaged.set(name, damage);
      this.#options.log.error({ volume: name, err: damage }, 'a replica is damaged and not served');
    }
  }

  #open(volumeId: string): Replica {
    const directory = join(this.#root, volumeId);
    const files = openReplicaFiles(directory, volumeId, null);
    if (!files.direct) {
      this.#options.log.warn({ volume: volumeId }, 'the file system refuses O_DIRECT; using the page cache');
    }
    const replica: Replica = { ...files, snapshots: new Map() };
    this.#noteBoot(replica);
    this.#replicas.set(volumeId, replica);
    const snapshots = join(directory, SNAPSHOTS);
    for (const name of existsSync(snapshots) ? readdirSync(snapshots) : []) {
      if (name.startsWith('.')) {
        rmSync(join(snapshots, name), { recursive: true, force: true });
        continue;
      }
      try {
        this.#openSnapshot(replica, name);
      } catch (error) {
        const damage = toBlockwireError(error, 'BW_REPLICA_DAMAGED');
        this.#damaged.set(`${volumeId}@${name}`, damage);
        this.#options.log.error(
          { volume: volumeId, snapshot: name, err: damage },
          'a snapshot is damaged and not served',
        );
      }
    }
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

  #openSnapshot(replica: Replica, name: string): ReplicaFiles {
    const files = openReplicaFiles(
      join(replica.directory, SNAPSHOTS, name),
      replica.descriptor.volumeId,
      name,
    );
    replica.snapshots.set(name, files);
    return files;
  }
}

function closeReplica(replica: Replica): void {
  for (const files of [replica, ...replica.snapshots.values()]) closeReplicaFiles(files);
}

function mapEntries(table: RegionTable, entry: (epoch: number, flags: number) => [number, number]): void {
  for (let region = 0; region < table.count; region++) {
    table.set(region, ...entry(table.epochOf(region), table.flagsOf(region)));
  }
}

function requireName(name: string, what: string): void {
  if (!ID_PATTERN.test(name)) throw new BlockwireError('BW_INVALID_ARGUMENT', `'${name}' is no ${what}`);
}

function requireSize(sizeBytes: number): void {
  if (Number.isSafeInteger(sizeBytes) && sizeBytes > 0) return;
  throw new BlockwireError('BW_INVALID_ARGUMENT', 'a volume has at least one byte');
}

function requireEpoch(epoch: number): void {
  if (epoch > EPOCH_MAX) throw new BlockwireError('BW_INVALID_ARGUMENT', `epochs end at ${EPOCH_MAX}`);
}

function ioError(error: unknown, doing: string): BlockwireError {
  if (error instanceof BlockwireError) return error;
  const code = (error as NodeJS.ErrnoException).code;
  const message = `${doing} failed: ${error instanceof Error ? error.message : String(error)}`;
  return new BlockwireError(code === 'ENOSPC' ? 'BW_NOT_ENOUGH_SPACE' : 'BW_IO', message, { cause: error });
}
