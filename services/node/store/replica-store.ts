/**
 * The replicas of a node on disk. One directory each; every change is made beside the name and renamed into place, so
 * that a crash leaves the old state or the new one.
 *
 *   DATA/lock                          flock: one node per data directory
 *   DATA/node.json                     the node's id
 *   DATA/replicas/vol-…/descriptor.json, data
 *   DATA/replicas/.new-…, .deleted-…   left by a crash; removed at opening
 */
import {
  closeSync,
  constants,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
} from 'node:fs';
import { join } from 'node:path';
import { native } from '@blockwire/native/native.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import {
  type Descriptor,
  FORMAT_VERSION,
  readDescriptor,
  syncDirectory,
  writeDescriptor,
} from './descriptor.ts';

export const BLOCK_SIZE_BYTES = 4096;
const DATA_FILE = 'data';
/** Also an export name and a directory: no path, no hidden file, none of NBD's limits. */
const ID_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

export interface Replica {
  readonly directory: string;
  readonly fd: number;
  /** False where the file system refuses O_DIRECT; then the page cache is between, and flush writes it back. */
  readonly direct: boolean;
  descriptor: Descriptor;
}

export interface ReplicaStoreOptions {
  readonly directory: string;
  /** What replicas may claim in all; null: what the file system has. */
  readonly capacityBytes: number | null;
  readonly log: Logger;
}

export class ReplicaStore {
  readonly #options: ReplicaStoreOptions;
  readonly #replicas = new Map<string, Replica>();
  /** Directories that cannot be served, and why. */
  readonly #damaged = new Map<string, BlockwireError>();
  readonly #lockFd: number;
  readonly #root: string;

  /**
   * Opens every replica. A damaged one is logged and left out; the others are served. Throws BW_CONFLICT when another
   * node uses the directory.
   */
  constructor(options: ReplicaStoreOptions) {
    this.#options = options;
    this.#root = join(options.directory, 'replicas');
    mkdirSync(this.#root, { recursive: true });
    this.#lockFd = openSync(join(options.directory, 'lock'), constants.O_RDWR | constants.O_CREAT, 0o600);
    if (!native.flock(this.#lockFd)) {
      closeSync(this.#lockFd);
      throw new BlockwireError(
        'BW_CONFLICT',
        `another node uses ${options.directory}; give each its own --data-dir`,
      );
    }
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
  create(wanted: Omit<Descriptor, 'version'>): Replica | null {
    const { volumeId, sizeBytes } = wanted;
    if (!ID_PATTERN.test(volumeId)) {
      throw new BlockwireError('BW_INVALID_ARGUMENT', `'${volumeId}' is no volume id`);
    }
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0) {
      throw new BlockwireError('BW_INVALID_ARGUMENT', 'a volume has at least one byte');
    }
    if (this.#replicas.has(volumeId) || this.#damaged.has(volumeId)) {
      const existing = this.get(volumeId).descriptor.sizeBytes;
      if (existing === sizeBytes) return null;
      throw new BlockwireError(
        'BW_REPLICA_EXISTS',
        `a replica of ${volumeId} with ${existing} bytes is here`,
      );
    }
    const freeBytes = this.freeBytes();
    if (sizeBytes > freeBytes) {
      throw new BlockwireError(
        'BW_NOT_ENOUGH_SPACE',
        `${sizeBytes} bytes wanted, ${freeBytes} free on this node`,
      );
    }
    const partial = join(this.#root, `.new-${volumeId}`);
    const directory = join(this.#root, volumeId);
    rmSync(partial, { recursive: true, force: true });
    mkdirSync(partial, { mode: 0o700 });
    try {
      const fd = openSync(join(partial, DATA_FILE), 'wx', 0o600);
      try {
        ftruncateSync(fd, fileSizeOf(sizeBytes));
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
      writeDescriptor(partial, { version: FORMAT_VERSION, ...wanted });
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
    this.#damaged.delete(volumeId);
    if (replica !== undefined) closeSync(replica.fd);
    rmSync(deleted, { recursive: true, force: true });
  }

  /**
   * Persists a generation and an epoch. Returns whether the generation rose. Throws BW_GENERATION_OLD or BW_EPOCH_OLD
   * when a higher one was installed before.
   */
  installEpoch(volumeId: string, generation: number, epoch: number): boolean {
    const replica = this.get(volumeId);
    const { descriptor } = replica;
    if (generation < descriptor.generation) {
      throw new BlockwireError(
        'BW_GENERATION_OLD',
        `generation ${generation} of ${volumeId} is older than ${descriptor.generation}, which is installed here`,
      );
    }
    if (epoch < descriptor.epoch) {
      throw new BlockwireError(
        'BW_EPOCH_OLD',
        `epoch ${epoch} of ${volumeId} is older than ${descriptor.epoch}, which is installed here`,
      );
    }
    if (generation === descriptor.generation && epoch === descriptor.epoch) return false;
    const updated = { ...descriptor, generation, epoch };
    try {
      writeDescriptor(replica.directory, updated);
    } catch (error) {
      throw ioError(error, `installing an epoch of ${volumeId}`);
    }
    replica.descriptor = updated;
    return generation > descriptor.generation;
  }

  /** Closes everything and gives the directory free. */
  close(): void {
    for (const { fd } of this.#replicas.values()) closeSync(fd);
    this.#replicas.clear();
    closeSync(this.#lockFd);
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
    const descriptor = readDescriptor(directory);
    const path = join(directory, DATA_FILE);
    if (descriptor.volumeId !== volumeId) {
      throw new BlockwireError(
        'BW_REPLICA_DAMAGED',
        `${directory} holds the descriptor of ${descriptor.volumeId}`,
      );
    }
    const { fd, direct } = openData(path);
    const found = statSync(path).size;
    if (found < fileSizeOf(descriptor.sizeBytes)) {
      closeSync(fd);
      throw new BlockwireError(
        'BW_REPLICA_DAMAGED',
        `${path} has ${found} bytes, ${fileSizeOf(descriptor.sizeBytes)} expected: it was cut`,
      );
    }
    if (!direct) {
      this.#options.log.warn({ volume: volumeId }, 'the file system refuses O_DIRECT; using the page cache');
    }
    const replica = { directory, fd, direct, descriptor };
    this.#replicas.set(volumeId, replica);
    return replica;
  }
}

function fileSizeOf(sizeBytes: number): number {
  return Math.ceil(sizeBytes / BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES;
}

/**
 * O_NONBLOCK: io_uring then tries inline on file systems that do not declare themselves (tmpfs), instead of handing
 * every operation to a kernel thread (io_uring/rw.c, io_file_supports_nowait). Elsewhere it changes nothing.
 */
function openData(path: string): { fd: number; direct: boolean } {
  const flags = constants.O_RDWR | constants.O_NONBLOCK;
  try {
    return { fd: openSync(path, flags | constants.O_DIRECT), direct: true };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    return { fd: openSync(path, flags), direct: false };
  }
}

function ioError(error: unknown, doing: string): BlockwireError {
  if (error instanceof BlockwireError) return error;
  const code = (error as NodeJS.ErrnoException).code;
  const message = `${doing} failed: ${error instanceof Error ? error.message : String(error)}`;
  return new BlockwireError(code === 'ENOSPC' ? 'BW_NOT_ENOUGH_SPACE' : 'BW_IO', message, { cause: error });
}
