/** What becomes of each block of a chunk that another replica has sent. Pure. */
import type { ByteRange } from '../replication/fresh.ts';
import { UNIT_BYTES } from './buffer-pool.ts';

/** Something fresher is here. */
export const BLOCK_KEEP = 0;
/** Written as it came. */
export const BLOCK_WRITE = 1;
/** A hole at the source becomes one here. */
export const BLOCK_PUNCH = 2;
/** Part of it is fresh: read, merged, written. */
export const BLOCK_MERGE = 3;

export interface Run {
  readonly kind: number;
  /** Index of its first block in the chunk, and of the one behind its last. */
  readonly start: number;
  readonly end: number;
}

/**
 * The kinds of a chunk's blocks.
 * @param parts what may be written of it, in bytes of the volume
 * @param holes by block: 1 where the source has a hole
 */
export function planCopy(chunk: ByteRange, parts: readonly ByteRange[], holes: Uint8Array): Uint8Array {
  const kinds = new Uint8Array(Math.ceil(chunk.length / UNIT_BYTES));
  for (const { offset, length } of parts) {
    const from = offset - chunk.offset;
    const to = from + length;
    const last = Math.ceil(to / UNIT_BYTES);
    for (let block = Math.floor(from / UNIT_BYTES); block < last; block++) {
      const at = block * UNIT_BYTES;
      // The last block of a volume may be cut.
      const isWhole = from <= at && to >= Math.min(at + UNIT_BYTES, chunk.length);
      kinds[block] = isWhole ? (holes[block] === 1 ? BLOCK_PUNCH : BLOCK_WRITE) : BLOCK_MERGE;
    }
  }
  return kinds;
}

/** The next stretch of blocks, from `from` on, that one operation does; null: nothing is left. */
export function nextRun(kinds: Uint8Array, from: number): Run | null {
  let start = from;
  while (start < kinds.length && kinds[start] === BLOCK_KEEP) start++;
  if (start >= kinds.length) return null;
  const kind = kinds[start]!;
  let end = start + 1;
  if (kind === BLOCK_WRITE || kind === BLOCK_PUNCH) while (end < kinds.length && kinds[end] === kind) end++;
  return { kind, start, end };
}
