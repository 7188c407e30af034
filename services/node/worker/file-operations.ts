/**
 * The operations of slots on their volume's file. What a slot's operation is for stands in `slots.step`; its span is the
 * whole blocks that a transfer moves, of which `ioBlock`, `ioLength`, `ioAt` are what is left after a short one.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { BLOCK_MASK, blockFrom } from './block-math.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, type NodeIo } from './node-io.ts';
import type { Slots } from './slots.ts';

export const STEP_READ = 1;
export const STEP_WRITE = 2;
export const STEP_SYNC = 3;
export const STEP_READ_HEAD = 4;
export const STEP_READ_TAIL = 5;
export const STEP_DEALLOCATE = 6;
export const STEP_ALLOCATE = 7;
export const STEP_READ_EDGE = 8;
export const STEP_WRITE_EDGE = 9;
export const STEP_COPY_READ = 10;
export const STEP_COPY_WRITE = 11;
export const STEP_COPY_PUNCH = 12;

/** Type of a slot that belongs to no client: blocks of another replica are written (copier.ts). */
export const CMD_COPY = 0xf0;

/** What `continueTransfer` answers. */
export const TRANSFER_DONE = 0;
export const TRANSFER_UNDER_WAY = 1;
export const TRANSFER_CUT = 2;

/** Whether a failure of this step leaves unknown content. */
export function changesData(step: number): boolean {
  return isWrite(step) || step === STEP_DEALLOCATE || step === STEP_ALLOCATE || step === STEP_COPY_PUNCH;
}

function isWrite(step: number): boolean {
  return step === STEP_WRITE || step === STEP_WRITE_EDGE || step === STEP_COPY_WRITE;
}

export class FileOperations {
  readonly #slots: Slots;
  readonly #io: NodeIo;

  constructor(slots: Slots, io: NodeIo) {
    this.#slots = slots;
    this.#io = io;
  }

  /** Reads whole blocks to the position `at`. */
  read(fd: number, slot: number, step: number, block: number, lengthBytes: number, at: number): void {
    this.#span(slot, step, block, lengthBytes, at);
    this.#io.read(fd, block, at, lengthBytes, slot);
  }

  /** Writes whole blocks from the position `at`; durable if the request says so. */
  write(fd: number, slot: number, step: number, block: number, lengthBytes: number, at: number): void {
    this.#span(slot, step, block, lengthBytes, at);
    this.#io.write(fd, block, at, lengthBytes, this.isDurable(slot), slot);
  }

  /** Writes the slot's block over its range. */
  writeRange(fd: number, slot: number): void {
    const slots = this.#slots;
    const start = slots.rangeStart[slot]!;
    const lengthBytes = (slots.rangeEnd[slot]! - start) * UNIT_BYTES;
    this.write(fd, slot, STEP_WRITE, start, lengthBytes, slots.buffer[slot]!);
  }

  sync(fd: number, slot: number): void {
    this.#slots.step[slot] = STEP_SYNC;
    this.#io.dataSync(fd, slot);
  }

  /** On the whole blocks of the request. */
  fallocate(fd: number, slot: number, step: number, mode: number): void {
    const slots = this.#slots;
    slots.step[slot] = step;
    const start = blockFrom(slots.offset[slot]!);
    this.#io.fallocate(fd, mode, start, slots.wholeEnd[slot]! - start, slot);
  }

  /** Punches some blocks of a copy's range. */
  punch(fd: number, slot: number, block: number, count: number): void {
    const slots = this.#slots;
    slots.step[slot] = STEP_COPY_PUNCH;
    slots.spanBlock[slot] = block;
    slots.spanLength[slot] = count * UNIT_BYTES;
    this.#io.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, block, count, slot);
  }

  /** After a transfer of `result` bytes: begins that of the rest, if there is one. */
  continueTransfer(fd: number, slot: number, result: number): number {
    const slots = this.#slots;
    const rest = slots.ioLength[slot]! - result;
    if (rest === 0) return TRANSFER_DONE;
    // The file is shorter than it was.
    if (result === 0 || (result & BLOCK_MASK) !== 0) return TRANSFER_CUT;
    const block = slots.ioBlock[slot]! + result / UNIT_BYTES;
    const at = slots.ioAt[slot]! + result;
    const step = slots.step[slot]!;
    this.#note(slot, step, block, rest, at);
    if (isWrite(step)) {
      this.#io.write(fd, block, at, rest, this.isDurable(slot), slot);
    } else {
      this.#io.read(fd, block, at, rest, slot);
    }
    return TRANSFER_UNDER_WAY;
  }

  /** FUA. */
  isDurable(slot: number): boolean {
    return (this.#slots.flags[slot]! & nbd.NBD_CMD_FLAG_FUA) !== 0;
  }

  #span(slot: number, step: number, block: number, lengthBytes: number, at: number): void {
    const slots = this.#slots;
    slots.spanBlock[slot] = block;
    slots.spanLength[slot] = lengthBytes;
    slots.spanAt[slot] = at;
    this.#note(slot, step, block, lengthBytes, at);
  }

  #note(slot: number, step: number, block: number, lengthBytes: number, at: number): void {
    const slots = this.#slots;
    slots.step[slot] = step;
    slots.ioBlock[slot] = block;
    slots.ioLength[slot] = lengthBytes;
    slots.ioAt[slot] = at;
  }
}
