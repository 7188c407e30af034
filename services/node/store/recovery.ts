/** Opening a replica after an unclean stop, with the real disk behind recompute.ts. Runs before it is served. */
import { fdatasyncSync, fsyncSync, read } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { allocateRegion, mapDescriptor } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { CHECKSUM_BLOCK_BYTES, checksumFileSizeOf } from './checksum-file.ts';
import { type RecomputeOutcome, recomputeDirtyRegions } from './recompute.ts';
import { writeRegionPages } from './region-file.ts';
import { REGION_SIZE_BYTES, REGIONS_PER_PAGE, type RegionTable } from './region-table.ts';
import {
  BLOCK_SIZE_BYTES,
  dataFileSizeOf,
  REGIONS_FILE,
  type ReplicaFiles,
  readRegions,
} from './replica-files.ts';

const readAt = promisify(read);
const ENXIO = 6;
const PROGRESS_MS = 5000;

/**
 * Recomputes the checksums of dirty regions, and tags intents with the installed epoch, should the process have ended
 * between persisting the one and the other. One region of memory. Null when nothing was dirty.
 */
export async function recoverReplica(files: ReplicaFiles, log: Logger): Promise<RecomputeOutcome | null> {
  const table = readRegions(files);
  const pages = new Set(table.tagIntents(files.descriptor.epoch));
  const dirty = dirtyRegions(table);
  const path = join(files.directory, REGIONS_FILE);
  if (dirty.length === 0) {
    if (pages.size > 0) writeRegionPages(path, table, pages);
    return null;
  }
  for (const region of dirty) pages.add(Math.floor(region / REGIONS_PER_PAGE));
  const { volumeId, sizeBytes } = files.descriptor;
  log.info({ volume: volumeId, regions: dirty.length }, 'unclean stop; computing checksums anew');
  const outcome = await withChecksums(files, async (checksums) => {
    let told = performance.now();
    return await recomputeWith(files, table, checksums, (done, total) => {
      if (performance.now() - told < PROGRESS_MS) return;
      told = performance.now();
      log.info({ volume: volumeId, done, total }, 'computing checksums anew');
    });
  });
  // What has just been read is what the checksums describe: it must outlive the next crash, too.
  if (files.descriptor.snapshot === null) fdatasyncSync(files.fd);
  fsyncSync(files.checksumsFd);
  writeRegionPages(path, table, pages);
  const { recomputed, changed, unreadable } = outcome;
  const level = unreadable.length > 0 ? 'error' : 'info';
  log[level](
    { volume: volumeId, sizeBytes, recomputed, changed, unreadable: unreadable.length },
    'checksums computed',
  );
  return outcome;
}

export function dirtyRegions(table: RegionTable): number[] {
  return Array.from({ length: table.count }, (_, region) => region).filter((region) => table.isDirty(region));
}

/** Maps the file `checksums` for the time of `use`. */
export async function withChecksums<T>(
  files: ReplicaFiles,
  use: (checksums: Uint32Array) => Promise<T>,
): Promise<T> {
  const lengthBytes = checksumFileSizeOf(files.descriptor.sizeBytes);
  const mapped = mapDescriptor({
    fd: files.checksumsFd,
    lengthBytes,
    offset: 0,
    writable: true,
    populate: false,
  });
  try {
    return await use(mapped.words);
  } finally {
    mapped.release();
  }
}

/** Recomputes the dirty regions of a table from the data file. */
export async function recomputeWith(
  files: ReplicaFiles,
  table: RegionTable,
  checksums: Uint32Array,
  onProgress?: (done: number, total: number) => void,
): Promise<RecomputeOutcome> {
  const reader = new RegionReader(files);
  try {
    return await recomputeDirtyRegions({
      table,
      checksums,
      dataSizeBytes: dataFileSizeOf(files.descriptor.sizeBytes),
      readRegion: (offset, length) => reader.read(offset, length),
      checksumBlocks: (_bytes, count, out) => reader.checksums(count, out),
      ...(onProgress === undefined ? {} : { onProgress }),
    });
  } finally {
    reader.release();
  }
}

/** Reads a data file region by region into one aligned buffer. */
export class RegionReader {
  readonly #files: ReplicaFiles;
  readonly #memory = allocateRegion(REGION_SIZE_BYTES);
  readonly #addresses: Float64Array;

  constructor(files: ReplicaFiles) {
    this.#files = files;
    const { address } = this.#memory;
    const count = REGION_SIZE_BYTES / CHECKSUM_BLOCK_BYTES;
    this.#addresses = Float64Array.from({ length: count }, (_, i) => address + i * BLOCK_SIZE_BYTES);
  }

  /** The bytes, or null when all of it is a hole. Rejects when the disk fails or the file is too short. */
  async read(offset: number, length: number): Promise<Uint8Array | null> {
    const { fd } = this.#files;
    const data = native.seekData(fd, offset);
    if (data === -ENXIO || data >= offset + length) return null;
    for (let at = 0; at < length; ) {
      const { bytesRead } = await readAt(fd, this.#memory.bytes, at, length - at, offset + at);
      if (bytesRead === 0) throw new Error(`the data file ends at ${offset + at}`);
      at += bytesRead;
    }
    return this.#memory.bytes.subarray(0, length);
  }

  /** Of the first blocks of what was read last. */
  checksums(count: number, out: Uint32Array): void {
    native.crc32cBlocks(this.#addresses, count, CHECKSUM_BLOCK_BYTES, out);
  }

  release(): void {
    this.#memory.release();
  }
}
