/**
 * Requests that begin or end within a block. The missing bytes are read into the slot's scratch block and verified like
 * any read before they are used.
 *
 *   WRITE          read head ─▶ (merge) ─▶ read tail ─▶ (merge) ─▶ write
 *   WRITE_ZEROES   read edge ─▶ (zero) ─▶ write edge, for each end; then what is between is deallocated
 *
 * A write within one block reads that block once, as its head. The volume's last block counts as whole.
 */
import { blockFrom, blockOf, withinBlock } from './block-math.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import {
  type FileOperations,
  STEP_READ_EDGE,
  STEP_READ_HEAD,
  STEP_READ_TAIL,
  STEP_WRITE_EDGE,
} from './file-operations.ts';
import type { Slots } from './slots.ts';
import type { Volume } from './volume.ts';

/** Whether a WRITE_ZEROES needs a block to merge parts of blocks in. */
export function mergesZeroes(
  volume: Volume,
  request: { readonly offset: number; readonly length: number },
): boolean {
  const end = request.offset + request.length;
  return withinBlock(request.offset) !== 0 || (withinBlock(end) !== 0 && end !== volume.sizeBytes);
}

/** The block behind the last whole one of a slot's request. */
export function wholeEndOf(volume: Volume, slots: Slots, slot: number): number {
  const end = slots.offset[slot]! + slots.length[slot]!;
  return end === volume.sizeBytes ? blockFrom(end) : blockOf(end);
}

export class PartialBlocks {
  readonly #slots: Slots;
  readonly #files: FileOperations;
  readonly #bytes: Uint8Array;

  constructor(slots: Slots, files: FileOperations, bytes: Uint8Array) {
    this.#slots = slots;
    this.#files = files;
    this.#bytes = bytes;
  }

  /** Whether a write begins or ends within a block. */
  isPartial(slot: number): boolean {
    const slots = this.#slots;
    const offset = slots.offset[slot]!;
    return withinBlock(offset) !== 0 || withinBlock(offset + slots.length[slot]!) !== 0;
  }

  /** Begins a write of parts of blocks. */
  beginWrite(fd: number, slot: number): void {
    const slots = this.#slots;
    if (withinBlock(slots.offset[slot]!) > 0 || this.#isOneBlock(slot)) {
      this.#read(fd, slot, STEP_READ_HEAD, slots.rangeStart[slot]!);
    } else {
      this.#readTail(fd, slot);
    }
  }

  /** The first block is in scratch. */
  mergeHead(fd: number, slot: number): void {
    const slots = this.#slots;
    const bytes = this.#bytes;
    const scratch = slots.scratch[slot]!;
    const buffer = slots.buffer[slot]!;
    const head = withinBlock(slots.offset[slot]!);
    bytes.copyWithin(buffer, scratch, scratch + head);
    if (this.#isOneBlock(slot)) {
      const end = head + slots.length[slot]!;
      bytes.copyWithin(buffer + end, scratch + end, scratch + UNIT_BYTES);
    } else if (this.#tailOf(slot) > 0) {
      this.#readTail(fd, slot);
      return;
    }
    this.#files.writeRange(fd, slot);
  }

  /** The last block is in scratch. */
  mergeTail(fd: number, slot: number): void {
    const slots = this.#slots;
    const scratch = slots.scratch[slot]!;
    const tail = this.#tailOf(slot);
    const lastAt = (slots.rangeEnd[slot]! - slots.rangeStart[slot]! - 1) * UNIT_BYTES;
    const to = slots.buffer[slot]! + lastAt + tail;
    this.#bytes.copyWithin(to, scratch + tail, scratch + UNIT_BYTES);
    this.#files.writeRange(fd, slot);
  }

  /** Reads the first edge of a WRITE_ZEROES at or behind a block. False: there is none left. */
  readEdge(fd: number, slot: number, from: number): boolean {
    const slots = this.#slots;
    const start = slots.rangeStart[slot]!;
    const wholeEnd = slots.wholeEnd[slot]!;
    if (from === start && blockFrom(slots.offset[slot]!) > start) {
      this.#read(fd, slot, STEP_READ_EDGE, start);
    } else if (from <= wholeEnd && wholeEnd < slots.rangeEnd[slot]!) {
      this.#read(fd, slot, STEP_READ_EDGE, wholeEnd);
    } else {
      return false;
    }
    return true;
  }

  /** The block in scratch is one of the edges: zeroes in, and back to the disk. */
  zeroEdge(fd: number, slot: number): void {
    const slots = this.#slots;
    const block = slots.spanBlock[slot]!;
    const at = block * UNIT_BYTES;
    const scratch = slots.scratch[slot]!;
    const from = Math.max(at, slots.offset[slot]!) - at;
    const to = Math.min(at + UNIT_BYTES, slots.offset[slot]! + slots.length[slot]!) - at;
    this.#bytes.fill(0, scratch + from, scratch + to);
    this.#files.write(fd, slot, STEP_WRITE_EDGE, block, UNIT_BYTES, scratch);
  }

  #readTail(fd: number, slot: number): void {
    this.#read(fd, slot, STEP_READ_TAIL, this.#slots.rangeEnd[slot]! - 1);
  }

  #read(fd: number, slot: number, step: number, block: number): void {
    this.#files.read(fd, slot, step, block, UNIT_BYTES, this.#slots.scratch[slot]!);
  }

  #tailOf(slot: number): number {
    return withinBlock(this.#slots.offset[slot]! + this.#slots.length[slot]!);
  }

  #isOneBlock(slot: number): boolean {
    return this.#slots.rangeEnd[slot]! - this.#slots.rangeStart[slot]! === 1;
  }
}
