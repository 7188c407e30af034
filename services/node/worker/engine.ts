/**
 * Requests on the disk: each slot goes through a few steps, each step one operation of the kernel.
 *
 *   READ                       read ─▶ verify ────────────────────────────▶ done
 *   WRITE, whole blocks        write (FUA: durable) ─▶ checksums ─────────▶ done
 *   WRITE, parts of blocks     read head ─▶ read tail ─▶ merge ─▶ write ──▶ done
 *   WRITE_ZEROES               parts of blocks as above ─▶ punch (NO_HOLE: zero, or punch and allocate) ─▶ FUA: sync ─▶ done
 *   TRIM                       punch ─▶ FUA: sync ────────────────────────▶ done
 *   FLUSH                      sync ──────────────────────────────────────▶ done
 *
 * What writes waits for overlapping writes first (write-order.ts), then until its regions are marked on the disk
 * (integrity.ts). Everything read is verified, also for a merge. A read beside a write in flight may see half of it: it is
 * done once more with its range to itself before a mismatch counts. Files are used in blocks of 4096 bytes, whatever the
 * client asks: O_DIRECT needs whole sectors.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import { BLOCK_BYTES_MAX, type BufferPool, NO_BLOCK, orderFor, UNIT_BYTES } from './buffer-pool.ts';
import { ChecksumBatch } from './checksum-batch.ts';
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
const STEP_READ_EDGE = 8;
const STEP_WRITE_EDGE = 9;

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

// Errno numbers of Linux that have a meaning of their own on the wire ("Error values").
const EPERM = 1;
const ENOMEM = 12;
const EFBIG = 27;
const ENOSPC = 28;
const EROFS = 30;
const EDQUOT = 122;
const EIO = 5;
/** What a block that does not match its checksum is told as: the errno of ext4 and btrfs for it. */
export const EBADMSG = 74;

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
  /** A block's content is not what was written. */
  checksumFailed(volume: Volume, block: number): void;
  /** A page of the volume's region map has changed: it must become durable. */
  regionsChanged(volume: Volume, page: number): void;
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
  readonly #batch: ChecksumBatch;
  readonly #waiting = new SlotQueue();
  /** The volume whose regions are being marked. */
  #marking: Volume | null = null;
  readonly #pageChanged = (page: number): void => this.#host.regionsChanged(this.#marking!, page);

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
    this.#batch = new ChecksumBatch(parts.io, parts.slots.count, parts.pool.sizeBytes / UNIT_BYTES);
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
        if (block !== NO_BLOCK) this.#pool.free(block, order);
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

  /** Memory for requests in all. */
  get poolBytes(): number {
    return this.#pool.sizeBytes;
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
    } else if (type === nbd.NBD_CMD_TRIM) {
      // A hint: parts of blocks are left alone.
      const last = this.#wholeEndOf(slot);
      slots.wholeEnd[slot] = last;
      if (blockEnd(offset) >= last) this.#settle(slot, nbd.NBD_OK);
      else this.#acquire(slot, blockEnd(offset), last);
    } else {
      slots.wholeEnd[slot] = this.#wholeEndOf(slot);
      this.#acquire(slot, start, end);
    }
  }

  #acquire(slot: number, start: number, end: number): void {
    this.#slots.rangeStart[slot] = start;
    this.#slots.rangeEnd[slot] = end;
    if (this.#volumeOf(slot).order.acquire(slot)) this.#beginWrite(slot);
    else this.#count(Stat.overlapWaits, 1);
  }

  /** Whether a request needs a block to merge parts of blocks in. */
  mergesZeroes(volume: Volume, offset: number, length: number): boolean {
    const end = offset + length;
    return withinBlock(offset) !== 0 || (withinBlock(end) !== 0 && end !== volume.sizeBytes);
  }

  /** Where the whole blocks of a request end; the volume's last block counts as whole. */
  #wholeEndOf(slot: number): number {
    const end = this.#slots.offset[slot]! + this.#slots.length[slot]!;
    return end === this.#volumeOf(slot).sizeBytes ? blockEnd(end) : end - withinBlock(end);
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
      case STEP_WRITE:
      case STEP_READ_HEAD:
      case STEP_READ_TAIL:
      case STEP_READ_EDGE:
      case STEP_WRITE_EDGE:
        if (this.#transferred(slot, result)) {
          this.#batch.add(slot, slots.spanAt[slot]!, slots.spanLength[slot]! / UNIT_BYTES);
        }
        break;
      case STEP_DEALLOCATE:
        if (this.#mustAllocate(slot)) this.#fallocate(slot, STEP_ALLOCATE, FALLOC_FL_KEEP_SIZE);
        else this.#deallocated(slot);
        break;
      case STEP_ALLOCATE:
        this.#deallocated(slot);
        break;
      default:
        this.#finish(slot, nbd.NBD_OK);
    }
  }

  /** After a batch of completions: checksums of all that was read and written, then each goes on. */
  settleBatch(): void {
    const batch = this.#batch;
    if (batch.count === 0) return;
    batch.compute();
    for (let entry = 0; entry < batch.count; entry++) this.#checked(entry, batch.slots[entry]!);
    batch.clear();
  }

  #checked(entry: number, slot: number): void {
    const slots = this.#slots;
    const volume = this.#volumeOf(slot);
    const { integrity } = volume;
    const step = slots.step[slot]!;
    const first = slots.spanOffset[slot]! / UNIT_BYTES;
    const count = slots.spanLength[slot]! / UNIT_BYTES;
    if (step === STEP_WRITE || step === STEP_WRITE_EDGE) {
      this.#batch.store(entry, integrity.checksums, first, count);
      if (step === STEP_WRITE) this.#finish(slot, nbd.NBD_OK);
      else this.#nextEdge(slot, slots.spanOffset[slot]! + UNIT_BYTES);
      return;
    }
    const wrong = this.#batch.mismatch(entry, integrity.checksums, first, count);
    if (wrong !== -1 && !this.#excused(entry, slot, volume, wrong, first, count)) return;
    switch (step) {
      case STEP_READ:
        this.#finish(slot, nbd.NBD_OK);
        break;
      case STEP_READ_HEAD:
        this.#mergeHead(slot);
        break;
      case STEP_READ_TAIL:
        this.#mergeTail(slot);
        break;
      default:
        this.#zeroEdge(slot);
    }
  }

  /** A mismatch: true when the content is to be taken all the same. Else the slot reads again, or has failed. */
  #excused(
    entry: number,
    slot: number,
    volume: Volume,
    wrong: number,
    first: number,
    count: number,
  ): boolean {
    const slots = this.#slots;
    if (slots.orderIndex[slot] === -1 && !volume.readOnly) {
      // A write may be under way, or have been: once more, with no write beside it.
      this.#count(Stat.checksumRetries, 1);
      this.#acquire(slot, slots.spanOffset[slot]!, slots.spanOffset[slot]! + slots.spanLength[slot]!);
      return false;
    }
    const { integrity } = volume;
    if (integrity.isUnknown(wrong)) {
      this.#batch.store(entry, integrity.checksums, first, count);
      return true;
    }
    this.#count(Stat.checksumErrors, 1);
    this.#host.checksumFailed(volume, wrong);
    this.#host.volumeFailed(volume, EBADMSG);
    this.#finish(slot, nbd.NBD_EIO);
    return false;
  }

  /** A page of region entries is durable, or failed with an errno: writes that waited for it begin, or fail. */
  regionsCommitted(volume: Volume, pageStart: number, pageEnd: number, errno: number): void {
    const { integrity } = volume;
    const slots = this.#slots;
    if (integrity.waiting.isEmpty) return;
    this.#waiting.head = integrity.waiting.head;
    this.#waiting.tail = integrity.waiting.tail;
    integrity.waiting.clear();
    for (;;) {
      const slot = this.#waiting.shift(slots);
      if (slot === NO_SLOT) return;
      const start = slots.rangeStart[slot]!;
      const end = slots.rangeEnd[slot]!;
      if (integrity.isArmed(start, end)) this.#beginArmed(slot);
      else if (errno !== 0 && start < pageEnd && end > pageStart) this.#finish(slot, nbdErrorOf(errno));
      else integrity.waiting.push(slots, slot);
    }
  }

  /** Ends a hold of the volume's order: what waited begins. */
  unhold(volume: Volume): void {
    volume.order.unhold(this.#granted);
    this.#startGranted();
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

  /** The range is the slot's own. */
  #beginWrite(slot: number): void {
    const slots = this.#slots;
    if (slots.type[slot] === nbd.NBD_CMD_READ) {
      this.#read(slot, STEP_READ, slots.spanOffset[slot]!, slots.spanLength[slot]!, slots.spanAt[slot]!);
      return;
    }
    const volume = this.#volumeOf(slot);
    const { integrity } = volume;
    const start = slots.rangeStart[slot]!;
    const end = slots.rangeEnd[slot]!;
    if (integrity.begin(start, end)) {
      this.#beginArmed(slot);
      return;
    }
    this.#count(Stat.regionWaits, 1);
    this.#marking = volume;
    integrity.mark(start, end, this.#pageChanged);
    integrity.waiting.push(slots, slot);
  }

  /** Its regions are marked on the disk. */
  #beginArmed(slot: number): void {
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
      default:
        this.#nextEdge(slot, slots.rangeStart[slot]!);
    }
  }

  // Write zeroes: the parts of blocks at both ends are read, verified and written, then what is between is deallocated.

  /** The first edge at or behind a file offset; else what is between the edges. */
  #nextEdge(slot: number, from: number): void {
    const slots = this.#slots;
    const offset = slots.offset[slot]!;
    const start = slots.rangeStart[slot]!;
    const wholeStart = blockEnd(offset);
    const wholeEnd = this.#slots.wholeEnd[slot]!;
    const scratch = slots.scratch[slot]!;
    if (from === start && wholeStart > start) {
      this.#read(slot, STEP_READ_EDGE, start, UNIT_BYTES, scratch);
    } else if (from <= wholeEnd && wholeEnd < slots.rangeEnd[slot]!) {
      this.#read(slot, STEP_READ_EDGE, wholeEnd, UNIT_BYTES, scratch);
    } else if (wholeStart < wholeEnd) {
      const zero = this.#noHole(slot) && this.#volumeOf(slot).canZeroRange;
      this.#fallocate(slot, STEP_DEALLOCATE, zero ? ZERO : PUNCH);
    } else {
      this.#finishRange(slot);
    }
  }

  /** The block in scratch is one of the edges: zeroes in, and back to the disk. */
  #zeroEdge(slot: number): void {
    const slots = this.#slots;
    const at = slots.spanOffset[slot]!;
    const scratch = slots.scratch[slot]!;
    const from = Math.max(at, slots.offset[slot]!) - at;
    const to = Math.min(at + UNIT_BYTES, slots.offset[slot]! + slots.length[slot]!) - at;
    this.#memory.bytes.fill(0, scratch + from, scratch + to);
    this.#span(slot, STEP_WRITE_EDGE, at, UNIT_BYTES, scratch);
    this.#io.write(this.#volumeOf(slot).fd, at, scratch, UNIT_BYTES, this.#isDurable(slot), slot);
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
    this.#span(slot, step, offset, length, at);
    this.#io.read(this.#volumeOf(slot).fd, offset, at, length, slot);
  }

  #write(slot: number): void {
    const slots = this.#slots;
    const start = slots.rangeStart[slot]!;
    const length = slots.rangeEnd[slot]! - start;
    const at = slots.buffer[slot]!;
    this.#span(slot, STEP_WRITE, start, length, at);
    this.#io.write(this.#volumeOf(slot).fd, start, at, length, this.#isDurable(slot), slot);
  }

  #sync(slot: number): void {
    this.#slots.step[slot] = STEP_SYNC;
    this.#io.dataSync(this.#volumeOf(slot).fd, slot);
  }

  #fallocate(slot: number, step: number, mode: number): void {
    const slots = this.#slots;
    slots.step[slot] = step;
    const start = blockEnd(slots.offset[slot]!);
    this.#io.fallocate(this.#volumeOf(slot).fd, mode, start, this.#slots.wholeEnd[slot]! - start, slot);
  }

  /** A transfer of whole blocks, all of it. */
  #span(slot: number, step: number, offset: number, length: number, at: number): void {
    const slots = this.#slots;
    slots.spanOffset[slot] = offset;
    slots.spanLength[slot] = length;
    slots.spanAt[slot] = at;
    this.#note(slot, step, offset, length, at);
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
      this.#diskError(slot, EIO);
      return false;
    }
    const offset = slots.ioOffset[slot]! + result;
    const at = slots.ioAt[slot]! + result;
    const step = slots.step[slot]!;
    this.#note(slot, step, offset, rest, at);
    if (step === STEP_WRITE || step === STEP_WRITE_EDGE) {
      this.#io.write(this.#volumeOf(slot).fd, offset, at, rest, this.#isDurable(slot), slot);
    } else {
      this.#io.read(this.#volumeOf(slot).fd, offset, at, rest, slot);
    }
    return false;
  }

  #deallocated(slot: number): void {
    this.#volumeOf(slot).integrity.zeroed(blockEnd(this.#slots.offset[slot]!), this.#slots.wholeEnd[slot]!);
    this.#finishRange(slot);
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
    const step = this.#slots.step[slot]!;
    this.#count(Stat.ioErrors, 1);
    this.#host.volumeFailed(volume, errno);
    if (writesData(step)) {
      volume.integrity.noteUnknown(this.#slots.rangeStart[slot]!, this.#slots.rangeEnd[slot]!);
    }
    this.#finish(slot, nbdErrorOf(errno));
  }

  #finish(slot: number, error: number): void {
    const slots = this.#slots;
    const ordered = slots.orderIndex[slot] !== -1;
    if (ordered) {
      const { integrity, order } = this.#volumeOf(slot);
      integrity.written(slots.rangeStart[slot]!, slots.rangeEnd[slot]!);
      order.release(slot, this.#granted);
    }
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

function writesData(step: number): boolean {
  return (
    step === STEP_WRITE || step === STEP_WRITE_EDGE || step === STEP_DEALLOCATE || step === STEP_ALLOCATE
  );
}
