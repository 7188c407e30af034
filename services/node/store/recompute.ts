/**
 * After an unclean stop: the checksums of dirty regions are computed anew from the data, so that a crash between a write
 * and its checksum never turns good data into an error. What was flushed is on the disk and is what is read here.
 */
import { CHECKSUM_BLOCK_BYTES, ZERO_BLOCK_CRC } from './checksum-file.ts';
import { REGION_DIRTY, REGION_SIZE_BYTES, type RegionTable } from './region-table.ts';

const BLOCKS_PER_REGION = REGION_SIZE_BYTES / CHECKSUM_BLOCK_BYTES;

export interface RecomputeOptions {
  readonly table: RegionTable;
  /** The words of the file `checksums`. */
  readonly checksums: Uint32Array;
  /** Bytes of the data file: whole blocks. */
  readonly dataSizeBytes: number;
  /** The region's bytes, or null when it is all a hole. Rejects when the disk fails. */
  readonly readRegion: (offset: number, lengthBytes: number) => Promise<Uint8Array | null>;
  /** CRC32C of each block of the bytes that `readRegion` gave. */
  readonly checksumBlocks: (bytes: Uint8Array, count: number, out: Uint32Array) => void;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface RecomputeOutcome {
  readonly recomputed: number;
  /** Blocks whose checksum was another. */
  readonly changed: number;
  /** Regions that could not be read; they stay dirty. */
  readonly unreadable: readonly number[];
}

/** Recomputes, and clears DIRTY in the table. The caller makes the checksums durable before it writes the table. */
export async function recomputeDirtyRegions(options: RecomputeOptions): Promise<RecomputeOutcome> {
  const { table, checksums, dataSizeBytes, readRegion, checksumBlocks, onProgress } = options;
  const dirty: number[] = [];
  for (let region = 0; region < table.count; region++) if (table.isDirty(region)) dirty.push(region);
  const computed = new Uint32Array(BLOCKS_PER_REGION);
  const unreadable: number[] = [];
  let changed = 0;
  for (const [index, region] of dirty.entries()) {
    onProgress?.(index, dirty.length);
    const offset = region * REGION_SIZE_BYTES;
    const length = Math.min(REGION_SIZE_BYTES, dataSizeBytes - offset);
    const count = length / CHECKSUM_BLOCK_BYTES;
    const first = offset / CHECKSUM_BLOCK_BYTES;
    let bytes: Uint8Array | null;
    try {
      bytes = await readRegion(offset, length);
    } catch {
      unreadable.push(region);
      continue;
    }
    if (bytes === null) computed.fill(ZERO_BLOCK_CRC, 0, count);
    else checksumBlocks(bytes, count, computed);
    for (let i = 0; i < count; i++) {
      const stored = (computed[i]! ^ ZERO_BLOCK_CRC) >>> 0;
      if (checksums[first + i] === stored) continue;
      checksums[first + i] = stored;
      changed++;
    }
    table.set(region, table.epochOf(region), table.flagsOf(region) & ~REGION_DIRTY);
  }
  return { recomputed: dirty.length - unreadable.length, changed, unreadable };
}
