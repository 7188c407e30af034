/**
 * The files of one replica, or of one of its snapshots: made, opened with their sizes checked, cloned, made longer.
 *
 *   descriptor.json   what it is (descriptor.ts)
 *   data              sparse; the size rounded up to whole blocks of 4096
 *   checksums         checksum-file.ts
 *   regions           region-table.ts
 */
import {
  closeSync,
  constants,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  statSync,
  writeSync,
} from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { allocateChecksumFile, checksumFileSizeOf } from './checksum-file.ts';
import { type Descriptor, readDescriptor } from './descriptor.ts';
import { growRegionFile, markRegionFileClean, readRegionFile, writeRegionFile } from './region-file.ts';
import { RegionTable, regionFileSizeOf } from './region-table.ts';

export const BLOCK_SIZE_BYTES = 4096;
export const DATA_FILE = 'data';
export const CHECKSUMS_FILE = 'checksums';
export const REGIONS_FILE = 'regions';
const COPY_BYTES = 1024 * 1024;

export interface ReplicaFiles {
  readonly directory: string;
  readonly fd: number;
  readonly checksumsFd: number;
  readonly regionsFd: number;
  /** False where the file system refuses O_DIRECT; then the page cache is between, and flush writes it back. */
  readonly direct: boolean;
  descriptor: Descriptor;
}

export function dataFileSizeOf(sizeBytes: number): number {
  return Math.ceil(sizeBytes / BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES;
}

/** The three files of an empty replica, durable. The directory is there, and empty. */
export function createReplicaFiles(directory: string, sizeBytes: number): void {
  createDataFile(join(directory, DATA_FILE), sizeBytes);
  allocateChecksumFile(join(directory, CHECKSUMS_FILE), sizeBytes);
  writeRegionFile(join(directory, REGIONS_FILE), new RegionTable(sizeBytes, null));
}

/** Opens everything. Throws BW_REPLICA_DAMAGED, with what is wrong, for anything that cannot be served. */
export function openReplicaFiles(directory: string, volumeId: string, snapshot: string | null): ReplicaFiles {
  const descriptor = readDescriptor(directory);
  if (descriptor.volumeId !== volumeId || descriptor.snapshot !== snapshot) {
    const holds =
      descriptor.snapshot === null ? descriptor.volumeId : `${descriptor.volumeId}@${descriptor.snapshot}`;
    throw new BlockwireError('BW_REPLICA_DAMAGED', `${directory} holds the descriptor of ${holds}`);
  }
  const { sizeBytes } = descriptor;
  const repair = '; `blockwire node check --repair` rebuilds it';
  requireSize(join(directory, DATA_FILE), dataFileSizeOf(sizeBytes), '');
  requireSize(join(directory, CHECKSUMS_FILE), checksumFileSizeOf(sizeBytes), repair);
  requireSize(join(directory, REGIONS_FILE), regionFileSizeOf(sizeBytes), repair);
  readRegionFile(join(directory, REGIONS_FILE), sizeBytes);
  const opened: number[] = [];
  try {
    const data = openDirect(
      join(directory, DATA_FILE),
      snapshot === null ? constants.O_RDWR : constants.O_RDONLY,
    );
    opened.push(data.fd);
    const checksumsFd = openSync(join(directory, CHECKSUMS_FILE), constants.O_RDWR);
    opened.push(checksumsFd);
    const regions = openDirect(join(directory, REGIONS_FILE), constants.O_RDWR);
    return { directory, fd: data.fd, checksumsFd, regionsFd: regions.fd, direct: data.direct, descriptor };
  } catch (error) {
    for (const fd of opened) closeSync(fd);
    throw error;
  }
}

export function closeReplicaFiles(files: ReplicaFiles): void {
  for (const fd of [files.fd, files.checksumsFd, files.regionsFd]) closeSync(fd);
}

/** Entries of the region map. */
export function readRegions(files: ReplicaFiles): RegionTable {
  return readRegionFile(join(files.directory, REGIONS_FILE), files.descriptor.sizeBytes);
}

/** After the last write: nothing has to be recomputed at the next opening. */
export function sealReplicaFiles(files: ReplicaFiles): void {
  fdatasyncSync(files.fd);
  fdatasyncSync(files.checksumsFd);
  markRegionFileClean(join(files.directory, REGIONS_FILE), files.descriptor.sizeBytes);
}

/** Lengthens the files; each may be longer already. The descriptor is the caller's next step. */
export function growReplicaFiles(files: ReplicaFiles, sizeBytes: number): void {
  const wanted = dataFileSizeOf(sizeBytes);
  if (fstatSync(files.fd).size < wanted) {
    ftruncateSync(files.fd, wanted);
    fsyncSync(files.fd);
  }
  allocateChecksumFile(join(files.directory, CHECKSUMS_FILE), sizeBytes);
  growRegionFile(join(files.directory, REGIONS_FILE), sizeBytes);
}

/**
 * Clones the files of `from`, which nobody writes, into a directory: the data by reflink, checksums by copying, regions as
 * given. Durable. Throws BW_SNAPSHOT_UNSUPPORTED where the file system cannot share blocks between files.
 */
export async function cloneReplicaFiles(
  from: string,
  to: string,
  sizeBytes: number,
  regions: RegionTable,
): Promise<void> {
  try {
    await copyFile(join(from, DATA_FILE), join(to, DATA_FILE), constants.COPYFILE_FICLONE_FORCE);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? '';
    if (!['ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EINVAL', 'ENOTTY', 'EXDEV'].includes(code)) throw error;
    throw new BlockwireError(
      'BW_SNAPSHOT_UNSUPPORTED',
      `the file system of ${from} cannot share blocks between files (${code}); put the data directory on XFS ` +
        'made with reflink=1 (the default of mkfs.xfs) or on btrfs',
      { cause: error },
    );
  }
  syncFile(join(to, DATA_FILE));
  copyChecksums(join(from, CHECKSUMS_FILE), join(to, CHECKSUMS_FILE), sizeBytes);
  writeRegionFile(join(to, REGIONS_FILE), regions);
}

/** By reading and writing: copy_file_range would share the blocks (why not: checksum-file.ts). Zeroes need no writing. */
function copyChecksums(from: string, to: string, sizeBytes: number): void {
  allocateChecksumFile(to, sizeBytes);
  const source = openSync(from, 'r');
  const target = openSync(to, 'r+');
  try {
    const buffer = Buffer.alloc(COPY_BYTES);
    const zeroes = Buffer.alloc(COPY_BYTES);
    for (let at = 0; ; ) {
      const count = readSync(source, buffer, 0, COPY_BYTES, at);
      if (count === 0) break;
      if (buffer.compare(zeroes, 0, count, 0, count) !== 0) {
        for (let done = 0; done < count; ) done += writeSync(target, buffer, done, count - done, at + done);
      }
      at += count;
    }
    fsyncSync(target);
  } finally {
    closeSync(source);
    closeSync(target);
  }
}

function createDataFile(path: string, sizeBytes: number): void {
  const fd = openSync(path, 'wx', 0o600);
  try {
    ftruncateSync(fd, dataFileSizeOf(sizeBytes));
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function syncFile(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function requireSize(path: string, wanted: number, advice: string): void {
  const found = statSync(path, { throwIfNoEntry: false })?.size;
  if (found === undefined) {
    throw new BlockwireError('BW_REPLICA_DAMAGED', `${path} is missing${advice}`);
  }
  if (found < wanted) {
    throw new BlockwireError(
      'BW_REPLICA_DAMAGED',
      `${path} has ${found} bytes, ${wanted} expected: it was cut${advice}`,
    );
  }
}

/**
 * O_NONBLOCK: io_uring then tries inline on file systems that do not declare themselves (tmpfs), instead of handing
 * every operation to a kernel thread (io_uring/rw.c, io_file_supports_nowait). Elsewhere it changes nothing.
 */
function openDirect(path: string, access: number): { fd: number; direct: boolean } {
  const flags = access | constants.O_NONBLOCK;
  try {
    return { fd: openSync(path, flags | constants.O_DIRECT), direct: true };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    return { fd: openSync(path, flags), direct: false };
  }
}
