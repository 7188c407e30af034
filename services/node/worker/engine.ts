/**
 * Requests on the disk: each slot goes through a few steps, each step one operation of the kernel.
 *
 *   READ                       read ──────────────────────────────────────▶ done
 *   WRITE, whole blocks        write (FUA: durable) ──────────────────────▶ done
 *   WRITE, parts of blocks     read head ─▶ read tail ─▶ merge ─▶ write ──▶ done
 *   TRIM, WRITE_ZEROES         punch (NO_HOLE: zero, or punch and allocate) ─▶ FUA: sync ─▶ done
 *   FLUSH                      sync ──────────────────────────────────────▶ done
 *
 * What writes waits for overlapping writes first (write-order.ts). Files are used in blocks of 4096 bytes, whatever
 * the client asks: O_DIRECT needs whole sectors.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import { BLOCK_BYTES_MAX, type BufferPool, NO_BLOCK, orderFor, UNIT_BYTES } from './buffer-pool.ts';
import type { Connection } from './connection.ts';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  type NodeIo,
  type NodeMemory,
} from './node-io.ts';
import { NO_SLOT, SlotQueue, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

const BLOCK_MASK = UNIT_BYTES - 1;
/** Longest span of whole blocks that one slot carries. */
export const PART_BYTES_MAX = BLOCK_BYTES_MAX;

const STEP_READ = 1;
const STEP_WRITE = 2;
const STEP_SYNC = 3;
const STEP_READ_HEAD = 4;
const STEP_READ_TAIL = 5;
const STEP_DEALLOCATE = 6;
const STEP_ALLOCATE = 7;

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

// Errno numbers of Linux that have a meaning of their own on the wire ("Error values").
const EPERM = 1;
const ENOMEM = 12;
const EFBIG = 27;
const ENOSPC = 28;
const EROFS = 30;
const EDQUOT = 122;

/** The NBD error of a positive errno. */
export function nbdErrorOf(errno: number): number {
  switch (errno) {
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
      return nbd.NBD_ENOSPC;
    case EPERM:
    case EROFS:
      return nbd.NBD_EPERM;
    case ENOMEM:
      return nbd.NBD_ENOMEM;
    default:
      return nbd.NBD_EIO;
  }
}

/**
 * Where within its block a byte offset lies. Bit operators work modulo 2^32, so this holds for every safe integer,
 * and needs no division.
 */
export function withinBlock(offset: number): number {
  return offset & BLOCK_MASK;
}

/** The next block boundary at or after a byte offset. */
export function blockEnd(offset: number): number {
  return offset + (-offset & BLOCK_MASK);
}

/** Bytes of whole blocks that hold a range. */
export function spanOf(offset: number, length: number): number {
  return blockEnd(offset + length) - (offset - withinBlock(offset));
}

/** What the engine tells the server. */
export interface EngineHost {
  connectionOf(slot: number): Connection;
  /** The slot's work is done; `slots.error` says how. Parts of a longer write are not told. */
  finished(slot: number): void;
  /** A part of a longer write is done: the connection has room again. */
  roomFreed(connection: Connection): void;
  /** An operation on the volume's file failed with this errno. */
  volumeFailed(volume: Volume, errno: number): void;
}

export class Engine {
  readonly #slots: Slots;
  readonly #pool: BufferPool;
  readonly #io: NodeIo;
  readonly #memory: NodeMemory;
  readonly #host: EngineHost;
  readonly #stats: Float64Array;
  readonly #granted = new SlotQueue();
  readonly #dropped = new SlotQueue();

  constructor(parts: {
    slots: Slots;
    pool: BufferPool;
    io: NodeIo;
    host: EngineHost;
    stats: Float64Array;
  }) {
    this.#slots = parts.slots;
    this.#pool = parts.pool;
    this.#io = parts.io;
    this.#memory = parts.io.memory;
    this.#host = parts.host;
    this.#stats = parts.stats;
  }

  /**
   * Takes a slot for `connection`, with a block for `spanBytes` (0: none) and the scratch block of a write of parts of
   * blocks. NO_SLOT when there is not enough of something: nothing was taken then.
   */
  take(connection: Connection, spanBytes: number, withScratch: boolean): number {
    const slots = this.#slots;
    if (slots.freeCount === 0) return NO_SLOT;
    let block = NO_BLOCK;
    let order = 0;
    if (spanBytes > 0) {
      order = orderFor(spanBytes);
      block = this.#pool.allocate(order);
      if (block === NO_BLOCK) return NO_SLOT;
    }
    let scratch = NO_BLOCK;
    if (withScratch) {
      scratch = this.#pool.allocate(0);
      if (scratch === NO_BLOCK) {
        this.#pool.free(block, order);
        return NO_SLOT;
      }
    }
    if (block !== NO_BLOCK) connection.bufferBytes += UNIT_BYTES << order;
    const slot = slots.take();
    slots.scratch[slot] = scratch;
    slots.buffer[slot] = block;
    slots.bufferOrder[slot] = order;
    slots.connection[slot] = connection.index;
    connection.inFlight++;
    return slot;
  }

  /** Memory for requests that nobody holds. */
  get freeBytes(): number {
    return this.#pool.freeBytes;
  }

  /** Gives slot and blocks back. */
  give(slot: number): void {
    const connection = this.#host.connectionOf(slot);
    this.#freeBlocks(slot, connection);
    connection.inFlight--;
    this.#slots.give(slot);
  }

  /** Begins the work of a slot whose type, flags, offset, length and payload are there. */
  start(slot: number): void {
    const slots = this.#slots;
    const offset = slots.offset[slot]!;
    const length = slots.length[slot]!;
    const start = offset - withinBlock(offset);
    const end = blockEnd(offset + length);
    const type = slots.type[slot]!;
    if (type === nbd.NBD_CMD_READ) {
      this.#read(slot, STEP_READ, start, end - start, slots.buffer[slot]!);
    } else if (type === nbd.NBD_CMD_FLUSH) {
      this.#sync(slot);
    } else {
      slots.rangeStart[slot] = start;
      slots.rangeEnd[slot] = end;
      if (this.#volumeOf(slot).order.acquire(slot)) this.#beginWrite(slot);
      else this.#count(Stat.overlapWaits, 1);
    }
  }

  /** Reads the next part of a long read into the slot's block: `offset` and `length` lie within one part. */
  readPart(slot: number, offset: number, length: number): void {
    const start = offset - withinBlock(offset);
    const end = blockEnd(offset + length);
    this.#read(slot, STEP_READ, start, end - start, this.#slots.buffer[slot]!);
  }

  /** Completion of the slot's operation. */
  complete(slot: number, result: number): void {
    const slots = this.#slots;
    if (result < 0) {
      this.#diskError(slot, -result);
      return;
    }
    switch (slots.step[slot]) {
      case STEP_READ:
        if (this.#transferred(slot, result)) this.#finish(slot, nbd.NBD_OK);
        break;
      case STEP_WRITE:
        if (this.#transferred(slot, result)) this.#finish(slot, nbd.NBD_OK);
        break;
      case STEP_READ_HEAD:
        if (this.#transferred(slot, result)) this.#mergeHead(slot);
        break;
      case STEP_READ_TAIL:
        if (this.#transferred(slot, result)) this.#mergeTail(slot);
        break;
      case STEP_DEALLOCATE:
        if (this.#mustAllocate(slot)) this.#fallocate(slot, STEP_ALLOCATE, FALLOC_FL_KEEP_SIZE);
        else this.#finishRange(slot);
        break;
      case STEP_ALLOCATE:
        this.#finishRange(slot);
        break;
      default:
        this.#finish(slot, nbd.NBD_OK);
    }
  }

  /** Forgets the requests of a closing connection that wait for others; what is on the disk runs to its end. */
  dropWaiting(connection: Connection): void {
    if (connection.volume === null) return;
    connection.volume.order.drop(connection.index, this.#dropped, this.#granted);
    for (;;) {
      const slot = this.#dropped.shift(this.#slots);
      if (slot === NO_SLOT) break;
      this.#settle(slot, nbd.NBD_ESHUTDOWN);
    }
    this.#startGranted();
  }

  #beginWrite(slot: number): void {
    const slots = this.#slots;
    switch (slots.type[slot]) {
      case nbd.NBD_CMD_WRITE: {
        const head = withinBlock(slots.offset[slot]!);
        const tail = withinBlock(slots.offset[slot]! + slots.length[slot]!);
        if (head === 0 && tail === 0) this.#write(slot);
        else this.#beginMerge(slot, head);
        break;
      }
      case nbd.NBD_CMD_TRIM:
        this.#fallocate(slot, STEP_DEALLOCATE, PUNCH);
        break;
      default: {
        const zero = this.#noHole(slot) && this.#volumeOf(slot).canZeroRange;
        this.#fallocate(slot, STEP_DEALLOCATE, zero ? ZERO : PUNCH);
      }
    }
  }

  // A write of parts of blocks: the missing bytes of the first and the last block are read and put around the payload.
  // The scratch block receives them; a write within one block reads that block once, as its head.

  #beginMerge(slot: number, head: number): void {
    const slots = this.#slots;
    this.#count(Stat.readModifyWrites, 1);
    if (head > 0 || this.#isOneBlock(slot)) {
      this.#read(slot, STEP_READ_HEAD, slots.rangeStart[slot]!, UNIT_BYTES, slots.scratch[slot]!);
    } else {
      this.#readTail(slot);
    }
  }

  #readTail(slot: number): void {
    const slots = this.#slots;
    this.#read(slot, STEP_READ_TAIL, slots.rangeEnd[slot]! - UNIT_BYTES, UNIT_BYTES, slots.scratch[slot]!);
  }

  #mergeHead(slot: number): void {
    const slots = this.#slots;
    const scratch = slots.scratch[slot]!;
    const buffer = slots.buffer[slot]!;
    const bytes = this.#memory.bytes;
    const head = withinBlock(slots.offset[slot]!);
    bytes.copyWithin(buffer, scratch, scratch + head);
    const tail = withinBlock(slots.offset[slot]! + slots.length[slot]!);
    if (this.#isOneBlock(slot)) {
      const end = head + slots.length[slot]!;
      bytes.copyWithin(buffer + end, scratch + end, scratch + UNIT_BYTES);
      this.#write(slot);
    } else if (tail > 0) {
      this.#readTail(slot);
    } else {
      this.#write(slot);
    }
  }

  #mergeTail(slot: number): void {
    const slots = this.#slots;
    const scratch = slots.scratch[slot]!;
    const span = slots.rangeEnd[slot]! - slots.rangeStart[slot]!;
    const tail = withinBlock(slots.offset[slot]! + slots.length[slot]!);
    const to = slots.buffer[slot]! + span - UNIT_BYTES + tail;
    this.#memory.bytes.copyWithin(to, scratch + tail, scratch + UNIT_BYTES);
    this.#write(slot);
  }

  #isOneBlock(slot: number): boolean {
    return this.#slots.rangeEnd[slot]! - this.#slots.rangeStart[slot]! === UNIT_BYTES;
  }

  // Operations

  #read(slot: number, step: number, offset: number, length: number, at: number): void {
    this.#note(slot, step, offset, length, at);
    this.#io.read(this.#volumeOf(slot).fd, offset, at, length, slot);
  }

  #write(slot: number): void {
    const slots = this.#slots;
    const start = slots.rangeStart[slot]!;
    const length = slots.rangeEnd[slot]! - start;
    const at = slots.buffer[slot]!;
    this.#note(slot, STEP_WRITE, start, length, at);
    this.#io.write(this.#volumeOf(slot).fd, start, at, length, this.#isDurable(slot), slot);
  }

  #sync(slot: number): void {
    this.#slots.step[slot] = STEP_SYNC;
    this.#io.dataSync(this.#volumeOf(slot).fd, slot);
  }

  #fallocate(slot: number, step: number, mode: number): void {
    const slots = this.#slots;
    slots.step[slot] = step;
    this.#io.fallocate(this.#volumeOf(slot).fd, mode, slots.offset[slot]!, slots.length[slot]!, slot);
  }

  #note(slot: number, step: number, offset: number, length: number, at: number): void {
    const slots = this.#slots;
    slots.step[slot] = step;
    slots.ioOffset[slot] = offset;
    slots.ioLength[slot] = length;
    slots.ioAt[slot] = at;
  }

  /** True when all bytes are there; else the rest is under way, or the slot failed: the file is shorter than it was. */
  #transferred(slot: number, result: number): boolean {
    const slots = this.#slots;
    const rest = slots.ioLength[slot]! - result;
    if (rest === 0) return true;
    if (result === 0 || (result & BLOCK_MASK) !== 0) {
      this.#diskError(slot, 5);
      return false;
    }
    const offset = slots.ioOffset[slot]! + result;
    const at = slots.ioAt[slot]! + result;
    const step = slots.step[slot]!;
    if (step === STEP_WRITE) {
      this.#note(slot, step, offset, rest, at);
      this.#io.write(this.#volumeOf(slot).fd, offset, at, rest, this.#isDurable(slot), slot);
    } else {
      this.#read(slot, step, offset, rest, at);
    }
    return false;
  }

  /** Trim and write zeroes: durable if the client asked, then done. */
  #finishRange(slot: number): void {
    if (this.#isDurable(slot)) this.#sync(slot);
    else this.#finish(slot, nbd.NBD_OK);
  }

  #mustAllocate(slot: number): boolean {
    return (
      this.#slots.type[slot] === nbd.NBD_CMD_WRITE_ZEROES &&
      this.#noHole(slot) &&
      !this.#volumeOf(slot).canZeroRange
    );
  }

  #noHole(slot: number): boolean {
    return (this.#slots.flags[slot]! & nbd.NBD_CMD_FLAG_NO_HOLE) !== 0;
  }

  #isDurable(slot: number): boolean {
    return (this.#slots.flags[slot]! & nbd.NBD_CMD_FLAG_FUA) !== 0;
  }

  #diskError(slot: number, errno: number): void {
    const volume = this.#volumeOf(slot);
    this.#count(Stat.ioErrors, 1);
    this.#host.volumeFailed(volume, errno);
    this.#finish(slot, nbdErrorOf(errno));
  }

  #finish(slot: number, error: number): void {
    const slots = this.#slots;
    const ordered = slots.orderIndex[slot] !== -1;
    if (ordered) this.#volumeOf(slot).order.release(slot, this.#granted);
    this.#settle(slot, error);
    if (ordered && !this.#granted.isEmpty) this.#startGranted();
  }

  #startGranted(): void {
    for (;;) {
      const slot = this.#granted.shift(this.#slots);
      if (slot === NO_SLOT) return;
      this.#beginWrite(slot);
    }
  }

  /** Ends a slot that holds no range: tells the server, or counts a part towards its whole. */
  #settle(slot: number, error: number): void {
    const slots = this.#slots;
    const connection = this.#host.connectionOf(slot);
    // Only a read's block is still needed, for its reply.
    if (slots.type[slot] !== nbd.NBD_CMD_READ) this.#freeBlocks(slot, connection);
    const parent = slots.parent[slot]!;
    if (parent === NO_SLOT) {
      slots.error[slot] = error;
      this.#host.finished(slot);
      return;
    }
    this.give(slot);
    this.#host.roomFreed(connection);
    this.partDone(parent, error);
  }

  /** One of the holds on a write of several parts is gone: a part at work, or the receiving of its payload. */
  partDone(parent: number, error: number): void {
    const slots = this.#slots;
    if (error !== 0 && slots.error[parent] === 0) slots.error[parent] = error;
    slots.pending[parent] = slots.pending[parent]! - 1;
    if (slots.pending[parent] === 0) this.#host.finished(parent);
  }

  #freeBlocks(slot: number, connection: Connection): void {
    const slots = this.#slots;
    const block = slots.buffer[slot]!;
    if (block !== NO_BLOCK) {
      const order = slots.bufferOrder[slot]!;
      this.#pool.free(block, order);
      connection.bufferBytes -= UNIT_BYTES << order;
      slots.buffer[slot] = NO_BLOCK;
    }
    if (slots.scratch[slot] !== NO_BLOCK) {
      this.#pool.free(slots.scratch[slot]!, 0);
      slots.scratch[slot] = NO_BLOCK;
    }
  }

  #volumeOf(slot: number): Volume {
    return this.#host.connectionOf(slot).volume!;
  }

  #count(stat: number, amount: number): void {
    this.#stats[stat] = this.#stats[stat]! + amount;
  }
}
