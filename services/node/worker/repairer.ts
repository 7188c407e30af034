/**
 * Repairs: blocks that do not match their checksums are written anew from a peer, under a live writer. The order of steps is
 * replication/repair.ts; reading from the peer is the main thread's, as for copies (copier.ts).
 *
 *   a region's range acquired ─▶ calm? ─▶ marked ─▶ pull (main thread) ─▶ each block: read, and written if it is bad ─▶ given back
 *
 * A region that is not calm is tried again for a while: a checkpoint of the writer makes it so. Nothing else does, however long
 * no writer has been here: one that is cut from both replicas may have a write done here that the peer lacks, and send it there
 * only, once it is back. What a dead writer has left is covered by the first checkpoint of the next one.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { COPY_CHUNK_BYTES, type CopyOrder, type FromWorker, type PulledChunk } from '../data/messages.ts';
import { Repair } from '../replication/repair.ts';
import { REGION_SIZE_BYTES } from '../store/region-table.ts';
import { blockOf } from './block-math.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import type { Connection, LocalClient } from './connection.ts';
import { EBADMSG } from './disk-errors.ts';
import type { CopySteps, Engine } from './engine.ts';
import { CMD_COPY, STEP_COPY_READ } from './file-operations.ts';
import type { LocalRequests } from './local-requests.ts';
import { NO_SLOT, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

/** How long regions may take to become calm, and how often that is asked. */
const CALM_MS_MAX = 60_000;
const AGAIN_MS = 500;

interface Job {
  readonly order: CopyOrder;
  readonly volume: Volume;
  readonly connection: Connection;
  readonly window: Uint8Array;
  readonly startedMs: number;
  repair: Repair;
  /** The region that is at work, and its slot, while its range is held or waited for. */
  region: number;
  slot: number;
  wantsSlot: boolean;
  /** Its range is held; its intent is marked, too; its blocks are being written. */
  isOrdered: boolean;
  isArmed: boolean;
  isWriting: boolean;
  /** Chunks of it that are asked for. */
  pulling: Set<number>;
  /** The block of it that is at work. */
  block: number;
  /** Regions to be tried again, and when. */
  left: readonly number[];
  againMs: number;
  error: string | null;
  isOver: boolean;
}

export interface RepairerHost {
  /** Monotonic milliseconds, as of the last tick. */
  readonly nowMs: number;
}

export class Repairer implements LocalClient {
  readonly #local: LocalRequests;
  readonly #slots: Slots;
  readonly #engine: Engine;
  readonly #host: RepairerHost;
  readonly #post: (message: FromWorker) => void;
  readonly #jobs = new Map<Connection, Job>();
  readonly steps: CopySteps = {
    copyOrdered: (slot) => this.#ordered(this.#jobOf(slot)),
    copyGranted: (slot) => this.#armed(this.#jobOf(slot), slot),
    copyStep: (slot, step, matches) => this.#step(this.#jobOf(slot), step, matches),
  };

  constructor(parts: {
    local: LocalRequests;
    host: RepairerHost;
    post: (message: FromWorker) => void;
  }) {
    this.#local = parts.local;
    this.#slots = parts.local.slots;
    this.#engine = parts.local.engine;
    this.#host = parts.host;
    this.#post = parts.post;
  }

  get idle(): boolean {
    return this.#jobs.size === 0;
  }

  /** Begins a repair; answered by `copied` when nothing of it is at work any more. */
  start(order: CopyOrder, volume: Volume): void {
    const connection = this.#local.enter(this, volume);
    if (connection === null) {
      this.#post({ type: 'copied', request: order.request, error: 'too many copies at once' });
      return;
    }
    const regions = [...order.regions].filter((region) => region < volume.integrity.table.count);
    const job: Job = {
      ...{ order, volume, connection, window: new Uint8Array(order.window), startedMs: this.#host.nowMs },
      repair: new Repair(
        regions,
        this.#repairHost(() => job),
      ),
      ...{ region: 0, slot: NO_SLOT, wantsSlot: false, isOrdered: false, isArmed: false, isWriting: false },
      ...{ pulling: new Set(), block: 0 },
      ...{ left: [], againMs: 0, error: null, isOver: false },
    };
    this.#jobs.set(connection, job);
    job.repair.start();
    this.#advance(job);
  }

  /** The main thread has a chunk, or could not get it. False: it is not one of a repair. */
  pulled({ request, index, error }: PulledChunk): boolean {
    const job = this.#find(request);
    if (job === undefined) return false;
    if (!job.pulling.delete(index)) return true;
    if (error !== null) {
      job.pulling.clear();
      job.error = error;
      job.repair.readDone(error);
    } else if (job.pulling.size === 0) {
      const length = this.#lengthOf(job);
      this.#local.fill(job.slot, job.window.subarray(0, length));
      job.repair.readDone(null);
    }
    this.#advance(job);
    return true;
  }

  cancel(request: number, reason: string): void {
    const job = this.#find(request);
    if (job !== undefined) this.#cancel(job, reason);
  }

  /** @param volume null: of all volumes */
  cancelAll(volume: Volume | null, reason: string): void {
    for (const job of [...this.#jobs.values()]) {
      if (volume === null || job.volume === volume) this.#cancel(job, reason);
    }
  }

  serve(connection: Connection): void {
    const job = this.#jobs.get(connection)!;
    for (;;) {
      const slot = this.#local.nextEnded(connection);
      if (slot === NO_SLOT) break;
      this.#finished(job, slot);
    }
    this.#advance(job);
  }

  onTick(): void {
    for (const job of [...this.#jobs.values()]) this.#advance(job);
  }

  #repairHost(job: () => Job): ConstructorParameters<typeof Repair>[1] {
    return {
      acquire: (region) => {
        job().region = region;
        job().wantsSlot = true;
      },
      isCalm: (region) => {
        const { volume, order, isOrdered } = job();
        const installed = volume.membership?.installed;
        // Not ordered: it was taken out of the queue.
        if (!isOrdered || installed?.epoch !== order.epoch) return false;
        return !volume.integrity.table.hasIntent(region);
      },
      // When its intent is marked: the write may then begin as soon as the content is there.
      read: () => {},
      write: () => {
        job().isWriting = true;
        job().block = -1;
        this.#next(job());
      },
      release: () => this.#release(job()),
      ended: (left) => this.#ended(job(), left),
    };
  }

  /** The region's range is ours, and nothing of it is marked yet: false gives it back. */
  #ordered(job: Job): boolean {
    job.isOrdered = true;
    const { slot } = job;
    job.repair.granted();
    // It may be over, and the next region be asked for.
    if (job.slot === slot) return true;
    this.#engine.copyGivenUp(slot);
    return false;
  }

  /** Gives the range back; one whose intent is being marked when it is. */
  #release(job: Job): void {
    const { slot, isArmed, isWriting } = job;
    job.slot = NO_SLOT;
    if (isWriting) this.#engine.copyDone(slot, nbd.NBD_OK);
    else if (isArmed) this.#engine.copyGivenUp(slot);
    this.#forget(job);
  }

  #forget(job: Job): void {
    job.slot = NO_SLOT;
    job.isOrdered = false;
    job.isArmed = false;
    job.isWriting = false;
    job.pulling.clear();
  }

  /** Its intent is durable: the content may come. */
  #armed(job: Job, slot: number): void {
    if (job.slot !== slot) {
      this.#engine.copyGivenUp(slot);
      return;
    }
    job.isArmed = true;
    const { request } = job.order;
    const length = this.#lengthOf(job);
    const total = { copiedBytes: 0, totalBytes: 0 };
    for (let index = 0; index * COPY_CHUNK_BYTES < length; index++) {
      job.pulling.add(index);
      const at = index * COPY_CHUNK_BYTES;
      const offset = job.region * REGION_SIZE_BYTES + at;
      const chunkLength = Math.min(COPY_CHUNK_BYTES, length - at);
      this.#post({ type: 'pull', request, index, offset, length: chunkLength, ...total });
    }
  }

  #step(job: Job, step: number, matches: boolean): void {
    if (step === STEP_COPY_READ && !matches) {
      const at = this.#slots.buffer[job.slot]! + job.block * UNIT_BYTES;
      this.#engine.copyWrite(job.slot, this.#blockOf(job), 1, at);
    } else {
      this.#next(job);
    }
  }

  #next(job: Job): void {
    job.block++;
    if (job.block * UNIT_BYTES < this.#lengthOf(job)) this.#engine.copyRead(job.slot, this.#blockOf(job));
    else job.repair.written(null);
  }

  #ended(job: Job, left: readonly number[]): void {
    const { volume, order, startedMs } = job;
    const isOfOrder = volume.membership?.installed.epoch === order.epoch;
    const mayBecomeCalm = job.error === null && isOfOrder && this.#host.nowMs - startedMs < CALM_MS_MAX;
    if (left.length > 0 && mayBecomeCalm) {
      job.left = left;
      job.againMs = this.#host.nowMs + AGAIN_MS;
      return;
    }
    if (left.length > 0)
      job.error ??= `regions ${left.join(', ')} are not calm (a checkpoint of their writer makes them so); to be tried again later`;
    job.isOver = true;
  }

  /** A slot has ended: with its region, or before its time. */
  #finished(job: Job, slot: number): void {
    const error = this.#slots.error[slot]!;
    this.#local.give(slot, job.connection);
    if (slot !== job.slot) return;
    const { isOrdered, isWriting } = job;
    this.#forget(job);
    if (isOrdered) job.error = `writing failed with NBD error ${error}`;
    if (isWriting) job.repair.written(job.error);
    else if (isOrdered) job.repair.readDone(job.error);
    // Taken out of the queue.
    else job.repair.granted();
  }

  #cancel(job: Job, reason: string): void {
    if (job.isOver) return;
    job.error ??= reason;
    const { wantsSlot } = job;
    job.wantsSlot = false;
    job.repair.cancel();
    if (wantsSlot) job.repair.granted();
    else if (job.left.length > 0) job.isOver = true;
    this.#engine.dropWaiting(job.connection);
    this.#local.connections.touch(job.connection);
  }

  /** Does what can be done now. */
  #advance(job: Job): void {
    if (job.isOver) {
      this.#end(job);
      return;
    }
    if (job.left.length > 0 && this.#host.nowMs >= job.againMs) {
      const { left } = job;
      job.left = [];
      job.repair = new Repair(
        left,
        this.#repairHost(() => job),
      );
      job.repair.start();
    }
    // One after the other, also when a region is given back at once.
    while (job.wantsSlot && job.slot === NO_SLOT) {
      const length = this.#lengthOf(job);
      const offset = job.region * REGION_SIZE_BYTES;
      const request = { type: CMD_COPY, flags: nbd.NBD_CMD_FLAG_FUA, offset, length, withScratch: true };
      const slot = this.#local.take(job.connection, request);
      if (slot === NO_SLOT) break;
      job.wantsSlot = false;
      job.slot = slot;
      job.block = 0;
      this.#engine.start(slot);
    }
    if (job.isOver) this.#end(job);
  }

  #end(job: Job): void {
    const { connection, volume, order, error } = job;
    if (connection.inFlight > 0 || !this.#jobs.delete(connection)) return;
    // What did not match is whole again; the next block that does not is news.
    if (error === null && volume.failure === EBADMSG) volume.failure = 0;
    this.#local.leave(connection, volume);
    this.#post({ type: 'copied', request: order.request, error });
  }

  #find(request: number): Job | undefined {
    for (const job of this.#jobs.values()) if (job.order.request === request) return job;
    return undefined;
  }

  #jobOf(slot: number): Job {
    return this.#jobs.get(this.#local.connections.get(this.#slots.connection[slot]!))!;
  }

  #lengthOf({ volume, region }: Job): number {
    return Math.min(REGION_SIZE_BYTES, volume.sizeBytes - region * REGION_SIZE_BYTES);
  }

  #blockOf({ region, block }: Job): number {
    return blockOf(region * REGION_SIZE_BYTES) + block;
  }
}
