/**
 * Copies from other replicas into volumes of this worker: rebuilds, reconciling. The plan and the order of steps are
 * replication/resync.ts; the main thread reads from the source into memory shared with it, what is here is the disk.
 *
 *   read ─▶ pull (main thread) ─▶ range acquired, regions marked ─▶ what is not fresh: write · punch · merge ─▶ … ─▶ flush
 *
 * A copy is a client of the engine like a connection (local-requests.ts); one chunk at a time is at work while there are requests.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import type { CopyOrder, FromWorker, PulledChunk } from '../data/messages.ts';
import { COPY_CHUNK_BYTES, COPY_CHUNKS } from '../data/messages.ts';
import type { ByteRange } from '../replication/fresh.ts';
import { planRebuild, planReconcile, Resync } from '../replication/resync.ts';
import { blockOf } from './block-math.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import type { Connection, LocalClient } from './connection.ts';
import { BLOCK_MERGE, BLOCK_PUNCH, nextRun, planCopy } from './copy-plan.ts';
import type { CopySteps, Engine } from './engine.ts';
import { CMD_COPY, STEP_COPY_READ } from './file-operations.ts';
import type { LocalRequests } from './local-requests.ts';
import { Pacer } from './pacer.ts';
import { NO_SLOT, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

interface Chunk extends ByteRange {
  readonly index: number;
  isPulling: boolean;
  slot: number;
  holes: Uint8Array;
  parts: readonly ByteRange[];
  kinds: Uint8Array;
  /** The block that is at work, and the one behind it. */
  block: number;
  next: number;
}

interface Copy {
  readonly order: CopyOrder;
  readonly volume: Volume;
  readonly connection: Connection;
  readonly window: Uint8Array;
  readonly pacer: Pacer;
  readonly resync: Resync;
  /** By index: what is between its reading and its being written. */
  readonly chunks: (Chunk | null)[];
  /** To be pulled when the pacer allows it; pulled, and waiting for memory. */
  readonly toPull: Chunk[];
  readonly toWrite: Chunk[];
  /** Chunks begun and not over. */
  activeCount: number;
  wantsFlush: boolean;
  flushSlot: number;
  /** Null: goes on. */
  outcome: { readonly error: string | null } | null;
}

export interface CopierHost {
  /** Monotonic milliseconds, as of the last tick. */
  readonly nowMs: number;
}

export class Copier implements LocalClient {
  readonly #local: LocalRequests;
  readonly #slots: Slots;
  readonly #engine: Engine;
  readonly #bytes: Uint8Array;
  readonly #host: CopierHost;
  readonly #post: (message: FromWorker) => void;
  readonly #copies = new Map<number, Copy>();
  readonly #chunkOfSlot = new Map<number, { readonly copy: Copy; readonly chunk: Chunk }>();
  /** Slots that copies hold. */
  #slotCount = 0;
  readonly steps: CopySteps = {
    copyOrdered: () => true,
    copyGranted: (slot) => this.#granted(slot),
    copyStep: (slot, step, matches) => this.#step(slot, step, matches),
  };

  constructor(parts: {
    local: LocalRequests;
    host: CopierHost;
    post: (message: FromWorker) => void;
  }) {
    this.#local = parts.local;
    this.#slots = parts.local.slots;
    this.#engine = parts.local.engine;
    this.#bytes = parts.local.bytes;
    this.#host = parts.host;
    this.#post = parts.post;
  }

  get idle(): boolean {
    return this.#copies.size === 0;
  }

  /** Begins a copy; answered by `copied` when nothing of it is at work any more. */
  start(order: CopyOrder, volume: Volume): void {
    const connection = this.#local.enter(this, volume);
    if (connection === null) {
      this.#post({ type: 'copied', request: order.request, error: 'too many copies at once' });
      return;
    }
    const { table } = volume.integrity;
    const regions =
      order.what === 'rebuild'
        ? planRebuild(table, order.regions, order.epoch)
        : planReconcile(table, order.regions);
    const copy: Copy = {
      ...{ order, volume, connection, window: new Uint8Array(order.window) },
      pacer: new Pacer(order.bytesPerSecond, this.#host.nowMs),
      resync: new Resync({
        ...{ regions, sizeBytes: volume.sizeBytes, chunkBytes: COPY_CHUNK_BYTES, parallel: COPY_CHUNKS },
        fresh: order.what === 'rebuild' ? volume.fresh : null,
        host: {
          read: (index, offset, length) => this.#read(copy, index, { offset, length }),
          acquire: (index) => {
            copy.toWrite.push(copy.chunks[index]!);
            this.#beginWrites(copy);
          },
          write: (index, parts) => this.#write(copy.chunks[index]!, parts),
          flush: () => {
            copy.wantsFlush = true;
            this.#flush(copy);
          },
          ended: (error) => this.#end(copy, error),
        },
      }),
      ...{ chunks: new Array<Chunk | null>(COPY_CHUNKS).fill(null), toPull: [], toWrite: [] },
      ...{ activeCount: 0, wantsFlush: false, flushSlot: NO_SLOT, outcome: null },
    };
    this.#copies.set(order.request, copy);
    copy.resync.start();
  }

  /** The main thread has a chunk, or could not get it. */
  pulled({ request, index, error, holes }: PulledChunk): void {
    const copy = this.#copies.get(request);
    const chunk = copy?.chunks[index];
    // A copy that has ended does not wait for it.
    if (copy === undefined || !chunk?.isPulling) return;
    chunk.isPulling = false;
    chunk.holes = holes;
    if (error !== null) this.#forget(copy, chunk);
    copy.resync.readDone(index, error);
    this.#advance(copy);
  }

  cancel(request: number, reason: string): void {
    this.#copies.get(request)?.resync.cancel(reason);
  }

  /** @param volume null: of all volumes */
  cancelAll(volume: Volume | null, reason: string): void {
    for (const copy of [...this.#copies.values()]) {
      if (volume === null || copy.volume === volume) copy.resync.cancel(reason);
    }
  }

  /** Something of the copy is over, or there is memory again. */
  serve(connection: Connection): void {
    for (const copy of this.#copies.values()) {
      if (copy.connection !== connection) continue;
      for (;;) {
        const slot = this.#local.nextEnded(connection);
        if (slot === NO_SLOT) break;
        this.#finished(copy, slot);
      }
      this.#advance(copy);
      return;
    }
  }

  onTick(): void {
    if (this.#copies.size === 0) return;
    for (const copy of [...this.#copies.values()]) this.#advance(copy);
  }

  #granted(slot: number): void {
    const { copy, chunk } = this.#chunkOfSlot.get(slot)!;
    copy.resync.granted(chunk.index);
  }

  #step(slot: number, step: number, matches: boolean): void {
    const { copy, chunk } = this.#chunkOfSlot.get(slot)!;
    if (step !== STEP_COPY_READ) {
      this.#next(chunk);
    } else if (!matches) {
      this.#engine.copyDone(slot, nbd.NBD_EIO);
    } else {
      this.#merge(copy, chunk);
    }
  }

  #read(copy: Copy, index: number, { offset, length }: ByteRange): void {
    const chunk: Chunk = {
      ...{ index, offset, length, isPulling: false, slot: NO_SLOT, parts: [], block: 0, next: 0 },
      ...{ holes: new Uint8Array(0), kinds: new Uint8Array(0) },
    };
    copy.chunks[index] = chunk;
    copy.toPull.push(chunk);
    this.#pull(copy);
  }

  #pull(copy: Copy): void {
    while (copy.outcome === null) {
      const chunk = copy.toPull[0];
      const isBusy = this.#slots.count - this.#slots.freeCount > this.#slotCount;
      if (chunk === undefined || (isBusy && copy.activeCount > 0)) return;
      if (!copy.pacer.take(chunk.length, this.#host.nowMs)) return;
      copy.toPull.shift();
      copy.activeCount++;
      chunk.isPulling = true;
      const { offset, length, index } = chunk;
      const { copiedBytes, totalBytes } = copy.resync;
      const { request } = copy.order;
      this.#post({ type: 'pull', request, index, offset, length, copiedBytes, totalBytes });
    }
  }

  /** Asks for the ranges of what has been pulled, as far as there is memory. */
  #beginWrites(copy: Copy): void {
    for (;;) {
      const chunk = copy.toWrite[0];
      if (chunk === undefined) return;
      const { offset, length } = chunk;
      const request = { type: CMD_COPY, flags: 0, offset, length, withScratch: true };
      const slot = this.#local.take(copy.connection, request);
      if (slot === NO_SLOT) return;
      copy.toWrite.shift();
      this.#slotCount++;
      chunk.slot = slot;
      this.#chunkOfSlot.set(slot, { copy, chunk });
      const from = chunk.index * COPY_CHUNK_BYTES;
      this.#local.fill(slot, copy.window.subarray(from, from + length));
      this.#engine.start(slot);
    }
  }

  /** The range is ours. */
  #write(chunk: Chunk, parts: readonly ByteRange[]): void {
    chunk.parts = parts;
    chunk.kinds = planCopy(chunk, parts, chunk.holes);
    this.#next(chunk);
  }

  #next(chunk: Chunk): void {
    const { slot } = chunk;
    const run = nextRun(chunk.kinds, chunk.next);
    if (run === null) {
      this.#engine.copyDone(slot, nbd.NBD_OK);
      return;
    }
    chunk.block = run.start;
    chunk.next = run.end;
    const block = this.#blockOf(chunk);
    const count = run.end - run.start;
    if (run.kind === BLOCK_PUNCH) this.#engine.copyPunch(slot, block, count);
    else if (run.kind === BLOCK_MERGE) this.#engine.copyRead(slot, block);
    else this.#engine.copyWrite(slot, block, count, this.#bufferAt(chunk));
  }

  /** The block is in scratch: what is not fresh of it comes from the source. */
  #merge({ volume }: Copy, chunk: Chunk): void {
    const { slot, block, parts, offset } = chunk;
    const scratch = this.#slots.scratch[slot]!;
    const start = offset + block * UNIT_BYTES;
    for (const part of parts) {
      const from = Math.max(part.offset, start) - start;
      const to = Math.min(part.offset + part.length, start + UNIT_BYTES, volume.sizeBytes) - start;
      if (from >= to) continue;
      const at = this.#bufferAt(chunk);
      this.#bytes.copyWithin(scratch + from, at + from, at + to);
    }
    this.#engine.copyWrite(slot, this.#blockOf(chunk), 1, scratch);
  }

  #flush(copy: Copy): void {
    const request = { type: nbd.NBD_CMD_FLUSH, flags: 0, offset: 0, length: 0, withScratch: false };
    const slot = this.#local.take(copy.connection, request);
    if (slot === NO_SLOT) return;
    copy.wantsFlush = false;
    copy.flushSlot = slot;
    this.#slotCount++;
    this.#engine.start(slot);
  }

  #finished(copy: Copy, slot: number): void {
    const errno = this.#slots.error[slot]!;
    const error = errno === nbd.NBD_OK ? null : `writing failed with NBD error ${errno}`;
    this.#local.give(slot, copy.connection);
    this.#slotCount--;
    if (slot === copy.flushSlot) {
      copy.flushSlot = NO_SLOT;
      copy.resync.flushed(error);
      return;
    }
    const { chunk } = this.#chunkOfSlot.get(slot)!;
    this.#chunkOfSlot.delete(slot);
    this.#forget(copy, chunk);
    copy.resync.written(chunk.index, error);
  }

  /** Does what can be done now. */
  #advance(copy: Copy): void {
    if (copy.outcome === null) {
      this.#beginWrites(copy);
      this.#pull(copy);
      if (copy.wantsFlush) this.#flush(copy);
      return;
    }
    const { connection, volume, order, outcome } = copy;
    if (copy.activeCount > 0 || connection.inFlight > 0 || !this.#copies.delete(order.request)) return;
    this.#local.leave(connection, volume);
    this.#post({ type: 'copied', request: order.request, error: outcome.error });
  }

  #end(copy: Copy, error: string | null): void {
    copy.outcome = { error };
    for (const chunk of copy.toPull.splice(0)) copy.chunks[chunk.index] = null;
    for (const chunk of copy.toWrite.splice(0)) this.#forget(copy, chunk);
    for (const chunk of copy.chunks) if (chunk?.isPulling) this.#forget(copy, chunk);
    this.#engine.dropWaiting(copy.connection);
    // What is at work runs to its end; then it is answered.
    this.#local.connections.touch(copy.connection);
  }

  #forget(copy: Copy, chunk: Chunk): void {
    copy.chunks[chunk.index] = null;
    copy.activeCount--;
  }

  #blockOf({ offset, block }: Chunk): number {
    return blockOf(offset) + block;
  }

  /** Where the block at work is in the chunk's buffer. */
  #bufferAt({ slot, block }: Chunk): number {
    return this.#slots.buffer[slot]! + block * UNIT_BYTES;
  }
}
