/**
 * Requests on the disk: each slot goes through a few steps, each step one operation of the kernel (file-operations.ts).
 *
 *   READ                       read ─▶ verify ────────────────────────────▶ done
 *   WRITE, whole blocks        write (FUA: durable) ─▶ checksums ─────────▶ done
 *   WRITE, parts of blocks     read head ─▶ read tail ─▶ merge ─▶ write ──▶ done          (partial-blocks.ts)
 *   WRITE_ZEROES               parts of blocks as above ─▶ punch (NO_HOLE: zero, or punch and allocate) ─▶ FUA: sync ─▶ done
 *   TRIM                       punch ─▶ FUA: sync ────────────────────────▶ done
 *   FLUSH                      sync ──────────────────────────────────────▶ done
 *   COPY                       read, punch, write, as its steps say ──────▶ done          (copier.ts)
 *
 * What writes waits for overlapping writes first (write-order.ts), then until its regions are marked on the disk
 * (integrity.ts). Everything read is verified, also for a merge. A read beside a write in flight may see half of it: it is
 * done once more with its range to itself before a mismatch counts.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import { blockFrom, blockOf } from './block-math.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import { ChecksumBatch } from './checksum-batch.ts';
import type { Connection } from './connection.ts';
import { EBADMSG, EIO, nbdErrorOf } from './disk-errors.ts';
import {
  CMD_COPY,
  changesData,
  FileOperations,
  STEP_ALLOCATE,
  STEP_COPY_PUNCH,
  STEP_COPY_READ,
  STEP_COPY_WRITE,
  STEP_DEALLOCATE,
  STEP_READ,
  STEP_READ_HEAD,
  STEP_READ_TAIL,
  STEP_SYNC,
  STEP_WRITE,
  STEP_WRITE_EDGE,
  TRANSFER_CUT,
  TRANSFER_DONE,
} from './file-operations.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, type NodeIo } from './node-io.ts';
import { PartialBlocks, wholeEndOf } from './partial-blocks.ts';
import type { RequestMemory } from './request-memory.ts';
import { NO_SLOT, SlotQueue, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

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

/** Who goes through a copy's steps: the blocks of another replica that are written into a range of their own. */
export interface CopySteps {
  /** The range is the slot's own, nothing is marked yet. False: it was given back, the slot is done. */
  copyOrdered(slot: number): boolean;
  /** The range is the slot's own, its regions are marked: the first step. */
  copyGranted(slot: number): void;
  /** A step is over. @param matches of STEP_COPY_READ: whether the block is what was once written */
  copyStep(slot: number, step: number, matches: boolean): void;
}

export class Engine {
  readonly #slots: Slots;
  readonly #memory: RequestMemory;
  readonly #files: FileOperations;
  readonly #partial: PartialBlocks;
  readonly #host: EngineHost;
  readonly #stats: Float64Array;
  readonly #batch: ChecksumBatch;
  readonly #granted = new SlotQueue();
  readonly #dropped = new SlotQueue();
  readonly #waiting = new SlotQueue();
  /** The volume whose regions are being marked. */
  #marking: Volume | null = null;
  readonly #pageChanged = (page: number): void => this.#host.regionsChanged(this.#marking!, page);

  constructor(parts: {
    slots: Slots;
    memory: RequestMemory;
    io: NodeIo;
    host: EngineHost;
    stats: Float64Array;
  }) {
    const { slots, memory, io } = parts;
    this.#slots = slots;
    this.#memory = memory;
    this.#host = parts.host;
    this.#stats = parts.stats;
    this.#files = new FileOperations(slots, io);
    this.#partial = new PartialBlocks(slots, this.#files, io.memory.bytes);
    this.#batch = new ChecksumBatch(io, slots.count, memory.sizeBytes / UNIT_BYTES);
  }

  /** Begins the work of a slot whose type, flags, offset, length and payload are there. */
  start(slot: number): void {
    const slots = this.#slots;
    const type = slots.type[slot]!;
    if (type === nbd.NBD_CMD_FLUSH) {
      this.#files.sync(this.#volumeOf(slot).fd, slot);
      return;
    }
    const offset = slots.offset[slot]!;
    const end = offset + slots.length[slot]!;
    if (type === nbd.NBD_CMD_READ) {
      this.#readBlocks(slot, blockOf(offset), blockFrom(end));
    } else if (type === nbd.NBD_CMD_TRIM) {
      // A hint: parts of blocks are left alone.
      const last = wholeEndOf(this.#volumeOf(slot), slots, slot);
      slots.wholeEnd[slot] = last;
      if (blockFrom(offset) >= last) this.#settle(slot, nbd.NBD_OK);
      else this.#acquire(slot, blockFrom(offset), last);
    } else {
      if (type === nbd.NBD_CMD_WRITE_ZEROES) {
        slots.wholeEnd[slot] = wholeEndOf(this.#volumeOf(slot), slots, slot);
      }
      this.#acquire(slot, blockOf(offset), blockFrom(end));
    }
  }

  /** As `start`, of a read: with its range to itself from the beginning. */
  readAlone(slot: number): void {
    const slots = this.#slots;
    const start = blockOf(slots.offset[slot]!);
    const end = blockFrom(slots.offset[slot]! + slots.length[slot]!);
    slots.spanAt[slot] = slots.buffer[slot]!;
    slots.spanLength[slot] = (end - start) * UNIT_BYTES;
    this.#acquire(slot, start, end);
  }

  /** Reads the next part of a long read into the slot's block: blocks `start` to before `end`. */
  readPart(slot: number, start: number, end: number): void {
    this.#readBlocks(slot, start, end);
  }

  /** Completion of the slot's operation. */
  complete(slot: number, result: number): void {
    if (result < 0) {
      if (this.#slots.step[slot] === STEP_COPY_READ) this.#steps(slot).copyStep(slot, STEP_COPY_READ, false);
      else this.#diskError(slot, -result);
      return;
    }
    switch (this.#slots.step[slot]) {
      case STEP_DEALLOCATE:
        if (this.#mustAllocate(slot)) this.#fallocate(slot, STEP_ALLOCATE, FALLOC_FL_KEEP_SIZE);
        else this.#deallocated(slot);
        break;
      case STEP_ALLOCATE:
        this.#deallocated(slot);
        break;
      case STEP_SYNC:
        this.#finish(slot, nbd.NBD_OK);
        break;
      case STEP_COPY_PUNCH: {
        const start = this.#slots.spanBlock[slot]!;
        this.#volumeOf(slot).integrity.zeroed(start, start + this.#slots.spanLength[slot]! / UNIT_BYTES);
        this.#steps(slot).copyStep(slot, STEP_COPY_PUNCH, true);
        break;
      }
      default:
        this.#transferred(slot, result);
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

  /** A page of region entries is durable, or failed with an errno: writes that waited for it begin, or fail. */
  regionsCommitted(volume: Volume, startBlock: number, endBlock: number, errno: number): void {
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
      else if (errno !== 0 && start < endBlock && end > startBlock) this.#finish(slot, nbdErrorOf(errno));
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

  /** One of the holds on a write of several parts is gone: a part at work, or the receiving of its payload. */
  partDone(parent: number, error: number): void {
    const slots = this.#slots;
    if (error !== 0 && slots.error[parent] === 0) slots.error[parent] = error;
    slots.pending[parent] = slots.pending[parent]! - 1;
    if (slots.pending[parent] === 0) this.#host.finished(parent);
  }

  // Verified transfers

  #readBlocks(slot: number, start: number, end: number): void {
    const { fd } = this.#volumeOf(slot);
    this.#files.read(fd, slot, STEP_READ, start, (end - start) * UNIT_BYTES, this.#slots.buffer[slot]!);
  }

  #transferred(slot: number, result: number): void {
    const outcome = this.#files.continueTransfer(this.#volumeOf(slot).fd, slot, result);
    if (outcome === TRANSFER_DONE) {
      const slots = this.#slots;
      this.#batch.add(slot, slots.spanAt[slot]!, slots.spanLength[slot]! / UNIT_BYTES);
    } else if (outcome === TRANSFER_CUT) {
      this.#diskError(slot, EIO);
    }
  }

  #checked(entry: number, slot: number): void {
    const slots = this.#slots;
    const volume = this.#volumeOf(slot);
    const { integrity } = volume;
    const step = slots.step[slot]!;
    const first = slots.spanBlock[slot]!;
    const count = slots.spanLength[slot]! / UNIT_BYTES;
    if (step === STEP_WRITE || step === STEP_WRITE_EDGE || step === STEP_COPY_WRITE) {
      this.#batch.store(entry, integrity.checksums, first, count);
      if (step === STEP_WRITE) this.#finish(slot, nbd.NBD_OK);
      else if (step === STEP_WRITE_EDGE) this.#nextEdge(slot, first + 1);
      else this.#steps(slot).copyStep(slot, step, true);
      return;
    }
    if (step === STEP_COPY_READ) {
      const matches = this.#batch.mismatch(entry, integrity.checksums, first, count) === -1;
      this.#steps(slot).copyStep(slot, step, matches);
      return;
    }
    const wrong = this.#batch.mismatch(entry, integrity.checksums, first, count);
    if (wrong !== -1 && !this.#excused(entry, slot, volume, wrong, first, count)) return;
    switch (step) {
      case STEP_READ:
        this.#finish(slot, nbd.NBD_OK);
        break;
      case STEP_READ_HEAD:
        this.#partial.mergeHead(volume.fd, slot);
        break;
      case STEP_READ_TAIL:
        this.#partial.mergeTail(volume.fd, slot);
        break;
      default:
        this.#partial.zeroEdge(volume.fd, slot);
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
    if (this.#slots.orderIndex[slot] === -1 && !volume.readOnly) {
      // A write may be under way, or have been: once more, with no write beside it.
      this.#count(Stat.checksumRetries, 1);
      this.#acquire(slot, first, first + count);
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

  // What has a range to itself

  #acquire(slot: number, start: number, end: number): void {
    this.#slots.rangeStart[slot] = start;
    this.#slots.rangeEnd[slot] = end;
    if (this.#volumeOf(slot).order.acquire(slot)) this.#beginOrdered(slot);
    else this.#count(Stat.overlapWaits, 1);
  }

  /** The range is the slot's own. */
  #beginOrdered(slot: number): void {
    const slots = this.#slots;
    const volume = this.#volumeOf(slot);
    const start = slots.rangeStart[slot]!;
    const end = slots.rangeEnd[slot]!;
    if (slots.type[slot] === nbd.NBD_CMD_READ) {
      const lengthBytes = slots.spanLength[slot]!;
      this.#files.read(volume.fd, slot, STEP_READ, start, lengthBytes, slots.spanAt[slot]!);
      return;
    }
    if (slots.type[slot] === CMD_COPY && !this.#steps(slot).copyOrdered(slot)) return;
    if (volume.fresh !== null) this.#noteFresh(volume, slot);
    const { integrity } = volume;
    if (integrity.begin(start, end)) {
      this.#beginArmed(slot);
      return;
    }
    this.#count(Stat.regionWaits, 1);
    this.#marking = volume;
    integrity.mark(start, end, this.#pageChanged);
    integrity.waiting.push(slots, slot);
  }

  /** While the replica is being rebuilt: what this write changes is not to be overwritten with older content. */
  #noteFresh(volume: Volume, slot: number): void {
    const slots = this.#slots;
    if (slots.type[slot] === CMD_COPY) return;
    if (slots.type[slot] === nbd.NBD_CMD_TRIM) {
      // Whole blocks only; the rest is left as it is, here as at the source.
      const start = slots.rangeStart[slot]!;
      volume.noteFresh(start * UNIT_BYTES, (slots.rangeEnd[slot]! - start) * UNIT_BYTES);
    } else {
      volume.noteFresh(slots.offset[slot]!, slots.length[slot]!);
    }
  }

  /** Its regions are marked on the disk. */
  #beginArmed(slot: number): void {
    switch (this.#slots.type[slot]) {
      case nbd.NBD_CMD_WRITE: {
        const { fd } = this.#volumeOf(slot);
        if (!this.#partial.isPartial(slot)) {
          this.#files.writeRange(fd, slot);
        } else {
          this.#count(Stat.readModifyWrites, 1);
          this.#partial.beginWrite(fd, slot);
        }
        break;
      }
      case nbd.NBD_CMD_TRIM:
        this.#fallocate(slot, STEP_DEALLOCATE, PUNCH);
        break;
      case CMD_COPY:
        this.#steps(slot).copyGranted(slot);
        break;
      default:
        this.#nextEdge(slot, this.#slots.rangeStart[slot]!);
    }
  }

  #startGranted(): void {
    for (;;) {
      const slot = this.#granted.shift(this.#slots);
      if (slot === NO_SLOT) return;
      this.#beginOrdered(slot);
    }
  }

  // Trim and write zeroes

  /** The first edge at or behind a block; else what is between the edges. */
  #nextEdge(slot: number, from: number): void {
    const slots = this.#slots;
    const volume = this.#volumeOf(slot);
    if (this.#partial.readEdge(volume.fd, slot, from)) return;
    if (blockFrom(slots.offset[slot]!) < slots.wholeEnd[slot]!) {
      this.#fallocate(slot, STEP_DEALLOCATE, this.#noHole(slot) && volume.canZeroRange ? ZERO : PUNCH);
    } else {
      this.#finishRange(slot);
    }
  }

  #fallocate(slot: number, step: number, mode: number): void {
    this.#files.fallocate(this.#volumeOf(slot).fd, slot, step, mode);
  }

  #deallocated(slot: number): void {
    const slots = this.#slots;
    this.#volumeOf(slot).integrity.zeroed(blockFrom(slots.offset[slot]!), slots.wholeEnd[slot]!);
    this.#finishRange(slot);
  }

  /** Durable if the client asked, then done. */
  #finishRange(slot: number): void {
    if (this.#files.isDurable(slot)) this.#files.sync(this.#volumeOf(slot).fd, slot);
    else this.#finish(slot, nbd.NBD_OK);
  }

  #mustAllocate(slot: number): boolean {
    const zeroes = this.#slots.type[slot] === nbd.NBD_CMD_WRITE_ZEROES;
    return zeroes && this.#noHole(slot) && !this.#volumeOf(slot).canZeroRange;
  }

  #noHole(slot: number): boolean {
    return (this.#slots.flags[slot]! & nbd.NBD_CMD_FLAG_NO_HOLE) !== 0;
  }

  // Steps of a copy, on blocks of its range

  /** Reads a block into the slot's scratch block. */
  copyRead(slot: number, block: number): void {
    const scratch = this.#slots.scratch[slot]!;
    this.#files.read(this.#volumeOf(slot).fd, slot, STEP_COPY_READ, block, UNIT_BYTES, scratch);
  }

  /** Writes blocks from the position `at`. */
  copyWrite(slot: number, block: number, count: number, at: number): void {
    this.#files.write(this.#volumeOf(slot).fd, slot, STEP_COPY_WRITE, block, count * UNIT_BYTES, at);
  }

  copyPunch(slot: number, block: number, count: number): void {
    this.#files.punch(this.#volumeOf(slot).fd, slot, block, count);
  }

  #steps(slot: number): CopySteps {
    return this.#host.connectionOf(slot).local!.steps!;
  }

  /** The last step is over: the range is given back. */
  copyDone(slot: number, error: number): void {
    this.#finish(slot, error);
  }

  /** The range is given back before anything was written: what it holds is as old as before. */
  copyGivenUp(slot: number): void {
    this.#giveBack(slot, nbd.NBD_OK);
  }

  // The end

  #diskError(slot: number, errno: number): void {
    const slots = this.#slots;
    const volume = this.#volumeOf(slot);
    this.#count(Stat.ioErrors, 1);
    this.#host.volumeFailed(volume, errno);
    if (changesData(slots.step[slot]!)) {
      volume.integrity.noteUnknown(slots.rangeStart[slot]!, slots.rangeEnd[slot]!);
    }
    this.#finish(slot, nbdErrorOf(errno));
  }

  /** Ends a slot, and what it did to its range, if it has one. */
  #finish(slot: number, error: number): void {
    const slots = this.#slots;
    if (slots.orderIndex[slot] !== -1 && slots.type[slot] !== nbd.NBD_CMD_READ) {
      this.#volumeOf(slot).integrity.written(slots.rangeStart[slot]!, slots.rangeEnd[slot]!);
    }
    this.#giveBack(slot, error);
  }

  /** Gives the slot's range back, if it has one, and ends it. */
  #giveBack(slot: number, error: number): void {
    const ordered = this.#slots.orderIndex[slot] !== -1;
    if (ordered) this.#volumeOf(slot).order.release(slot, this.#granted);
    this.#settle(slot, error);
    if (ordered && !this.#granted.isEmpty) this.#startGranted();
  }

  /** Ends a slot that holds no range: tells the server, or counts a part towards its whole. */
  #settle(slot: number, error: number): void {
    const slots = this.#slots;
    const connection = this.#host.connectionOf(slot);
    // Only a read's block is still needed, for its reply.
    if (slots.type[slot] !== nbd.NBD_CMD_READ) this.#memory.freeBlocks(slot, connection);
    const parent = slots.parent[slot]!;
    if (parent === NO_SLOT) {
      slots.error[slot] = error;
      this.#host.finished(slot);
      return;
    }
    this.#memory.give(slot, connection);
    this.#host.roomFreed(connection);
    this.partDone(parent, error);
  }

  #volumeOf(slot: number): Volume {
    return this.#host.connectionOf(slot).volume!;
  }

  #count(stat: number, amount: number): void {
    this.#stats[stat] = this.#stats[stat]! + amount;
  }
}
