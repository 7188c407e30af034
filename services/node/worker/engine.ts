/**
 * Requests on the disk: each slot goes through a few steps, each step one operation of the kernel (file-operations.ts).
 *
 *   READ                       read ─▶ verify ────────────────────────────▶ done
 *   WRITE, whole blocks        write (FUA: durable) ─▶ checksums ─────────▶ done
 *   WRITE, parts of blocks     read head ─▶ read tail ─▶ merge ─▶ write ──▶ done          (partial-blocks.ts)
 *   WRITE_ZEROES, TRIM         parts of blocks as above ─▶ punch ─▶ FUA: sync ─▶ done       (deallocation.ts)
 *   FLUSH                      sync ──────────────────────────────────────▶ done
 *   COPY                       read, punch, write, as its steps say ──────▶ done          (copier.ts)
 *
 * What writes waits first until it has its range of blocks to itself (ranges.ts). Everything read is verified, also for a merge. A read beside a write in flight may see half of it: it is
 * done once more with its range to itself before a mismatch counts.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import { blockFrom, blockOf } from './block-math.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import { ChecksumBatch } from './checksum-batch.ts';
import type { Connection } from './connection.ts';
import { Deallocation } from './deallocation.ts';
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
import type { NodeIo } from './node-io.ts';
import { PartialBlocks, wholeEndOf } from './partial-blocks.ts';
import { type RangeHost, Ranges } from './ranges.ts';
import type { RequestMemory } from './request-memory.ts';
import { NO_SLOT, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

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

export class Engine implements RangeHost {
  readonly #slots: Slots;
  readonly #memory: RequestMemory;
  readonly #files: FileOperations;
  readonly #partial: PartialBlocks;
  readonly #host: EngineHost;
  readonly #stats: Float64Array;
  readonly #batch: ChecksumBatch;
  readonly #ranges: Ranges;
  readonly #deallocation: Deallocation;

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
    this.#deallocation = new Deallocation(slots, this.#files, this.#partial);
    this.#ranges = new Ranges(slots, this, parts.stats);
    this.#batch = new ChecksumBatch(io, slots.count, memory.sizeBytes / UNIT_BYTES);
  }

  /** Begins the work of a slot whose type, flags, offset, length and payload are there. */
  start(slot: number): void {
    const slots = this.#slots;
    const type = slots.type[slot]!;
    if (type === nbd.NBD_CMD_FLUSH) {
      this.#files.sync(this.volumeOf(slot).fd, slot);
      return;
    }
    const offset = slots.offset[slot]!;
    const end = offset + slots.length[slot]!;
    if (type === nbd.NBD_CMD_READ) {
      this.#readBlocks(slot, blockOf(offset), blockFrom(end));
    } else if (type === nbd.NBD_CMD_TRIM) {
      // A hint: parts of blocks are left alone.
      const last = wholeEndOf(this.volumeOf(slot), slots, slot);
      slots.wholeEnd[slot] = last;
      if (blockFrom(offset) >= last) this.#settle(slot, nbd.NBD_OK);
      else this.#ranges.acquire(slot, blockFrom(offset), last);
    } else {
      if (type === nbd.NBD_CMD_WRITE_ZEROES) {
        slots.wholeEnd[slot] = wholeEndOf(this.volumeOf(slot), slots, slot);
      }
      this.#ranges.acquire(slot, blockOf(offset), blockFrom(end));
    }
  }

  /** As `start`, of a read: with its range to itself from the beginning. */
  readAlone(slot: number): void {
    const slots = this.#slots;
    const start = blockOf(slots.offset[slot]!);
    const end = blockFrom(slots.offset[slot]! + slots.length[slot]!);
    slots.spanAt[slot] = slots.buffer[slot]!;
    slots.spanLength[slot] = (end - start) * UNIT_BYTES;
    this.#ranges.acquire(slot, start, end);
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
      case STEP_ALLOCATE:
        if (!this.#deallocation.proceed(this.volumeOf(slot), slot)) this.#finishRange(slot);
        break;
      case STEP_SYNC:
        this.#finish(slot, nbd.NBD_OK);
        break;
      case STEP_COPY_PUNCH: {
        const start = this.#slots.spanBlock[slot]!;
        this.volumeOf(slot).integrity.zeroed(start, start + this.#slots.spanLength[slot]! / UNIT_BYTES);
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
    this.#ranges.committed(volume, startBlock, endBlock, errno);
  }

  /** Ends a hold of the volume's order: what waited begins. */
  unhold(volume: Volume): void {
    this.#ranges.unhold(volume);
  }

  /** Forgets the requests of a closing connection that wait for others; what is on the disk runs to its end. */
  dropWaiting(connection: Connection): void {
    if (connection.volume !== null) this.#ranges.drop(connection.volume, connection.index);
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
    const { fd } = this.volumeOf(slot);
    this.#files.read(fd, slot, STEP_READ, start, (end - start) * UNIT_BYTES, this.#slots.buffer[slot]!);
  }

  #transferred(slot: number, result: number): void {
    const outcome = this.#files.continueTransfer(this.volumeOf(slot).fd, slot, result);
    if (outcome === TRANSFER_DONE) {
      const slots = this.#slots;
      this.#batch.add(slot, slots.spanAt[slot]!, slots.spanLength[slot]! / UNIT_BYTES);
    } else if (outcome === TRANSFER_CUT) {
      this.#diskError(slot, EIO);
    }
  }

  #checked(entry: number, slot: number): void {
    const slots = this.#slots;
    const volume = this.volumeOf(slot);
    const { integrity } = volume;
    const step = slots.step[slot]!;
    const first = slots.spanBlock[slot]!;
    const count = slots.spanLength[slot]! / UNIT_BYTES;
    if (step === STEP_WRITE || step === STEP_WRITE_EDGE || step === STEP_COPY_WRITE) {
      this.#batch.store(entry, integrity.checksums, first, count);
      if (step === STEP_WRITE) this.#finish(slot, nbd.NBD_OK);
      else if (step === STEP_WRITE_EDGE) this.#nextZeroes(slot, first + 1);
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
    if (!this.#ranges.has(slot) && !volume.readOnly) {
      // A write may be under way, or have been: once more, with no write beside it.
      this.#count(Stat.checksumRetries, 1);
      this.#ranges.acquire(slot, first, first + count);
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

  rangeOrdered(slot: number, volume: Volume): boolean {
    const slots = this.#slots;
    if (slots.type[slot] === nbd.NBD_CMD_READ) {
      const lengthBytes = slots.spanLength[slot]!;
      this.#files.read(volume.fd, slot, STEP_READ, slots.rangeStart[slot]!, lengthBytes, slots.spanAt[slot]!);
      return false;
    }
    if (slots.type[slot] === CMD_COPY && !this.#steps(slot).copyOrdered(slot)) return false;
    if (volume.fresh !== null) this.#noteFresh(volume, slot);
    return true;
  }

  rangeFailed(slot: number, errno: number): void {
    this.#finish(slot, nbdErrorOf(errno));
  }

  rangeDropped(slot: number): void {
    this.#settle(slot, nbd.NBD_ESHUTDOWN);
  }

  regionsChanged(volume: Volume, page: number): void {
    this.#host.regionsChanged(volume, page);
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

  rangeArmed(slot: number): void {
    switch (this.#slots.type[slot]) {
      case nbd.NBD_CMD_WRITE: {
        const { fd } = this.volumeOf(slot);
        if (!this.#partial.isPartial(slot)) {
          this.#files.writeRange(fd, slot);
        } else {
          this.#count(Stat.readModifyWrites, 1);
          this.#partial.beginWrite(fd, slot);
        }
        break;
      }
      case nbd.NBD_CMD_TRIM:
        this.#deallocation.trim(this.volumeOf(slot), slot);
        break;
      case CMD_COPY:
        this.#steps(slot).copyGranted(slot);
        break;
      default:
        this.#nextZeroes(slot, this.#slots.rangeStart[slot]!);
    }
  }

  #nextZeroes(slot: number, from: number): void {
    if (!this.#deallocation.nextZeroes(this.volumeOf(slot), slot, from)) this.#finishRange(slot);
  }

  /** Durable if the client asked, then done. */
  #finishRange(slot: number): void {
    if (this.#files.isDurable(slot)) this.#files.sync(this.volumeOf(slot).fd, slot);
    else this.#finish(slot, nbd.NBD_OK);
  }

  // Steps of a copy, on blocks of its range

  /** Reads a block into the slot's scratch block. */
  copyRead(slot: number, block: number): void {
    const scratch = this.#slots.scratch[slot]!;
    this.#files.read(this.volumeOf(slot).fd, slot, STEP_COPY_READ, block, UNIT_BYTES, scratch);
  }

  /** Writes blocks from the position `at`. */
  copyWrite(slot: number, block: number, count: number, at: number): void {
    this.#files.write(this.volumeOf(slot).fd, slot, STEP_COPY_WRITE, block, count * UNIT_BYTES, at);
  }

  copyPunch(slot: number, block: number, count: number): void {
    this.#files.punch(this.volumeOf(slot).fd, slot, block, count);
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
    const volume = this.volumeOf(slot);
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
    if (this.#ranges.has(slot) && slots.type[slot] !== nbd.NBD_CMD_READ) {
      this.volumeOf(slot).integrity.written(slots.rangeStart[slot]!, slots.rangeEnd[slot]!);
    }
    this.#giveBack(slot, error);
  }

  /** Gives the slot's range back, if it has one, and ends it. */
  #giveBack(slot: number, error: number): void {
    const ordered = this.#ranges.has(slot);
    if (ordered) this.#ranges.release(slot);
    this.#settle(slot, error);
    if (ordered) this.#ranges.startGranted();
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

  volumeOf(slot: number): Volume {
    return this.#host.connectionOf(slot).volume!;
  }

  #count(stat: number, amount: number): void {
    this.#stats[stat] = this.#stats[stat]! + amount;
  }
}
