/**
 * TRIM and WRITE_ZEROES, which have the file system forget blocks.
 *
 *   TRIM           whole blocks: punch
 *   WRITE_ZEROES   zeroes into parts of blocks at its ends (partial-blocks.ts) ─▶ what is between: punch
 *                  NO_HOLE: zero the range, or where the file system cannot, punch ─▶ allocate
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { blockFrom } from './block-math.ts';
import { type FileOperations, STEP_ALLOCATE, STEP_DEALLOCATE } from './file-operations.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE } from './node-io.ts';
import type { PartialBlocks } from './partial-blocks.ts';
import type { Slots } from './slots.ts';
import type { Volume } from './volume.ts';

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

export class Deallocation {
  readonly #slots: Slots;
  readonly #files: FileOperations;
  readonly #partial: PartialBlocks;

  constructor(slots: Slots, files: FileOperations, partial: PartialBlocks) {
    this.#slots = slots;
    this.#files = files;
    this.#partial = partial;
  }

  trim(volume: Volume, slot: number): void {
    this.#files.fallocate(volume.fd, slot, STEP_DEALLOCATE, PUNCH);
  }

  /** Of a WRITE_ZEROES: the first edge at or behind a block, else what is between the edges. False: all is done. */
  nextZeroes(volume: Volume, slot: number, from: number): boolean {
    const slots = this.#slots;
    if (this.#partial.readEdge(volume.fd, slot, from)) return true;
    if (blockFrom(slots.offset[slot]!) >= slots.wholeEnd[slot]!) return false;
    const mode = this.#noHole(slot) && volume.canZeroRange ? ZERO : PUNCH;
    this.#files.fallocate(volume.fd, slot, STEP_DEALLOCATE, mode);
    return true;
  }

  /** STEP_DEALLOCATE or STEP_ALLOCATE is over. False: all is done. */
  proceed(volume: Volume, slot: number): boolean {
    const slots = this.#slots;
    const punched = slots.step[slot] === STEP_DEALLOCATE && slots.type[slot] === nbd.NBD_CMD_WRITE_ZEROES;
    if (punched && this.#noHole(slot) && !volume.canZeroRange) {
      this.#files.fallocate(volume.fd, slot, STEP_ALLOCATE, FALLOC_FL_KEEP_SIZE);
      return true;
    }
    volume.integrity.zeroed(blockFrom(slots.offset[slot]!), slots.wholeEnd[slot]!);
    return false;
  }

  #noHole(slot: number): boolean {
    return (this.#slots.flags[slot]! & nbd.NBD_CMD_FLAG_NO_HOLE) !== 0;
  }
}
