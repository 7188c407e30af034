/**
 * Byte ranges of clients as whole blocks of 4096 bytes: the unit of files (O_DIRECT), of checksums, and of everything
 * behind the receiver. Block indexes rather than byte offsets, because a number of 2^31 or more costs an allocation
 * whenever it passes a call that is not inlined: in blocks that is 8 TiB.
 */
import { BLOCK_BYTES_MAX, UNIT_BYTES } from './buffer-pool.ts';

export const BLOCK_MASK = UNIT_BYTES - 1;
/** Longest span of whole blocks that one slot carries. */
export const PART_BYTES_MAX = BLOCK_BYTES_MAX;

/**
 * Where within its block a byte offset lies. Bit operators work modulo 2^32, so this holds for every safe integer,
 * and needs no division.
 */
export function withinBlock(offset: number): number {
  return offset & BLOCK_MASK;
}

/** The block that a byte offset lies in. */
export function blockOf(offset: number): number {
  return (offset - (offset & BLOCK_MASK)) / UNIT_BYTES;
}

/** The first block that begins at or after a byte offset. */
export function blockFrom(offset: number): number {
  return (offset + (-offset & BLOCK_MASK)) / UNIT_BYTES;
}

/** Bytes of the whole blocks that hold a range. */
export function spanOf(offset: number, length: number): number {
  return (blockFrom(offset + length) - blockOf(offset)) * UNIT_BYTES;
}
