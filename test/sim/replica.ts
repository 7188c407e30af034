/**
 * What a storage node's process does with one replica: the node's own order, regions, commits and cleaning on a simulated
 * disk. Gone when the process ends; only the disk stays.
 */
import type { ByteRange } from '@blockwire/node/replication/fresh.ts';
import { REGIONS_PER_PAGE, type RegionTable } from '@blockwire/node/store/region-table.ts';
import { BufferPool } from '@blockwire/node/worker/buffer-pool.ts';
import { CLEAN_BASE, Cleaner } from '@blockwire/node/worker/cleaner.ts';
import { PAGE_IDLE } from '@blockwire/node/worker/integrity.ts';
import type { MappedWords, NodeIo, NodeMemory } from '@blockwire/node/worker/node-io.ts';
import { RegionCommitter } from '@blockwire/node/worker/region-commit.ts';
import { NO_SLOT, SlotQueue, Slots } from '@blockwire/node/worker/slots.ts';
import { Volume } from '@blockwire/node/worker/volume.ts';
import type { Disk } from './disk.ts';
import { SIZE_BYTES, UNIT_BYTES, unitAt } from './geometry.ts';
import type { Mutation } from './mutations.ts';
import type { Process } from './network.ts';

const DATA_FD = 1;
const CHECKSUMS_FD = 2;
const REGIONS_FD = 3;
const SLOTS_COUNT = 64;
const POOL_BYTES = 1024 * 1024;
const PAGE_BYTES = 4096;
/** What the worker counts in. */
const BLOCK_BYTES = 4096;

/** Nothing reads them here. */
const CHECKSUMS: MappedWords = {
  words: new Uint32Array(SIZE_BYTES / 4096),
  faultCount: () => 0,
  release: () => {},
};

export type JobOutcome = 'done' | 'failed' | 'dropped';

interface Job {
  readonly range: ByteRange;
  /** Runs when the range is ours and its regions are armed; calls back when it is done with the disk. */
  run: (done: (error: number) => void) => void;
  /** It is over, one way or the other. */
  ended: (outcome: JobOutcome) => void;
  readonly granted: (slot: number) => void;
  readonly owner: number;
  /** Something of it is written: what its regions hold is new. */
  hasBegun: boolean;
  /** The range stays ours, before and after it runs, until it is given back. */
  readonly isHeld: boolean;
}

/** A range that is ours until it is released. */
export interface HeldRange {
  write(units: readonly number[], values: readonly number[], ended: (outcome: JobOutcome) => void): void;
  release(): void;
}

export class SimReplica {
  readonly volume: Volume;
  readonly #process: Process;
  readonly #disk: Disk;
  readonly #mutation: Mutation;
  readonly #slots = new Slots(SLOTS_COUNT);
  readonly #jobs: (Job | null)[] = new Array<Job | null>(SLOTS_COUNT).fill(null);
  readonly #queue: Job[] = [];
  /** Jobs that hold their range and wait for regions to be armed. */
  #arming: number[] = [];
  readonly #committer: RegionCommitter;
  readonly #cleaner: Cleaner;
  #tagging: { readonly pages: Set<number>; readonly done: () => void }[] = [];
  #drains: { readonly owners: ReadonlySet<number>; readonly done: () => void }[] = [];

  constructor(options: { readonly process: Process; readonly disk: Disk; readonly mutation: Mutation }) {
    const { process, disk, mutation } = options;
    this.#process = process;
    this.#disk = disk;
    this.#mutation = mutation;
    const io = this.#io();
    const { installed } = disk;
    const { epoch } = installed;
    this.volume = new Volume(
      {
        ...{ id: 'volume', fd: DATA_FD, checksumsFd: CHECKSUMS_FD, regionsFd: REGIONS_FD },
        ...{ regions: disk.regionWords, sizeBytes: SIZE_BYTES, installed },
      },
      io,
      this.#slots,
    );
    // As the store does at opening: the process may have ended between the descriptor and the pages.
    if (mutation !== 'no-tag-on-install') this.volume.integrity.table.tagIntents(epoch);
    disk.regionWords.set(this.volume.integrity.table.words);
    if (mutation === 'no-tag-on-install') this.volume.integrity.table.tagIntents = () => [];
    this.#committer = new RegionCommitter(io, new BufferPool(POOL_BYTES), {
      pageCommitted: (_volume, page) => this.#pageCommitted(page),
    });
    this.#cleaner = new Cleaner(io, this.#committer, { volumeFailed: () => {} });
  }

  get table(): RegionTable {
    return this.volume.integrity.table;
  }

  /** Of its disk: multiplies all times. */
  get slowness(): number {
    return this.#disk.slowness;
  }

  tick(): void {
    this.#cleaner.tick(this.volume);
  }

  /** Null when a checksum does not match. */
  read(units: readonly number[]): number[] | null {
    const isDamaged = units.some((unit) => this.#disk.isRotten(unit));
    if (isDamaged && this.#mutation !== 'ignore-checksum') return null;
    return units.map((unit) => this.#disk.data[unit]!);
  }

  /** Writes in the order of arrival; overlapping ones never together. `granted` runs when its range is its own. */
  write(options: {
    readonly owner: number;
    readonly range: ByteRange;
    readonly values: readonly number[];
    readonly granted: () => void;
    readonly ended: (outcome: JobOutcome) => void;
  }): void {
    const { owner, range, values, granted, ended } = options;
    const units = unitsOf(range);
    this.#admit({
      ...{ owner, range, granted, ended, isHeld: false, hasBegun: false },
      run: (done) => this.#disk.write(units, values, done),
    });
  }

  /** Takes a range; `use` gets what it may write there, decided while the range is its own. */
  exclusively(options: {
    readonly owner: number;
    readonly range: ByteRange;
    readonly parts: () => readonly {
      readonly units: readonly number[];
      readonly values: readonly number[];
    }[];
    readonly ended: (outcome: JobOutcome) => void;
  }): void {
    const { owner, range, parts, ended } = options;
    this.#admit({
      ...{ owner, range, ended, granted: () => {}, isHeld: false, hasBegun: false },
      run: (done) => {
        const found = parts();
        this.#disk.write(
          found.flatMap(({ units }) => units),
          found.flatMap(({ values }) => values),
          done,
        );
      },
    });
  }

  /** Takes a range, before its regions are armed. */
  hold(options: {
    readonly owner: number;
    readonly range: ByteRange;
    readonly granted: (held: HeldRange) => void;
  }): void {
    const { owner, range } = options;
    const job: Job = {
      ...{ owner, range, isHeld: true, hasBegun: false, run: () => {}, ended: () => {} },
      granted: (slot) =>
        options.granted({
          write: (units, values, ended) => {
            job.run = (done) => this.#disk.write(units, values, done);
            job.ended = ended;
            this.#begin(slot);
          },
          release: () => this.#release(slot),
        }),
    };
    this.#admit(job);
  }

  flush(done: () => void): void {
    this.#disk.sync(() => this.#process.enter(done));
  }

  checkpoint(stamp: number): void {
    this.#cleaner.checkpoint(this.volume, () => {}, stamp);
  }

  nextStamp(): number {
    return ++this.volume.integrity.stamp;
  }

  /** Drops what these owners have waiting; `done` runs when nothing of theirs is at work. */
  drop(owners: ReadonlySet<number>, done: () => void): void {
    for (const [index, job] of [...this.#queue.entries()].reverse()) {
      if (!owners.has(job.owner)) continue;
      this.#queue.splice(index, 1);
      job.ended('dropped');
    }
    const dropped = new SlotQueue();
    const granted = new SlotQueue();
    for (const owner of owners) this.volume.order.drop(owner, dropped, granted);
    for (let slot = dropped.shift(this.#slots); slot !== NO_SLOT; slot = dropped.shift(this.#slots)) {
      this.#end(slot, 'dropped');
    }
    this.#start(granted);
    this.#drains.push({ owners, done });
    this.#finishDrains();
  }

  /** Tags intents with an installed epoch, durably. */
  installEpoch(epoch: number, done: () => void): void {
    const pages = this.volume.integrity.installEpoch(epoch);
    // Writes that wait for their regions need them in the new epoch.
    for (const slot of this.#arming) this.#mark(this.#jobs[slot]!.range);
    for (const page of pages) this.#committer.request(this.volume, page);
    this.#committer.flush();
    if (pages.length === 0) done();
    else this.#tagging.push({ pages: new Set(pages), done });
  }

  #admit(job: Job): void {
    const slot = this.#slots.take();
    if (slot === NO_SLOT) {
      this.#queue.push(job);
      return;
    }
    this.#jobs[slot] = job;
    this.#slots.connection[slot] = job.owner;
    this.#slots.rangeStart[slot] = startOf(job.range);
    this.#slots.rangeEnd[slot] = endOf(job.range);
    this.#slots.orderIndex[slot] = -1;
    if (this.volume.order.acquire(slot)) this.#granted(slot);
  }

  #start(granted: SlotQueue): void {
    for (let slot = granted.shift(this.#slots); slot !== NO_SLOT; slot = granted.shift(this.#slots)) {
      this.#granted(slot);
    }
  }

  #granted(slot: number): void {
    const job = this.#jobs[slot]!;
    job.granted(slot);
    if (!job.isHeld) this.#begin(slot);
  }

  #begin(slot: number): void {
    const job = this.#jobs[slot]!;
    job.hasBegun = true;
    if (this.#mutation === 'skip-intent') {
      this.#run(slot);
    } else if (this.volume.integrity.begin(startOf(job.range), endOf(job.range))) {
      this.#run(slot);
    } else {
      this.#arming.push(slot);
      this.#mark(job.range);
      if (this.#mutation === 'write-before-intent') {
        this.#arming.pop();
        this.#run(slot);
      }
      this.#committer.flush();
    }
  }

  #mark(range: ByteRange): void {
    const { integrity } = this.volume;
    integrity.mark(startOf(range), endOf(range), (page) => this.#committer.request(this.volume, page));
  }

  #run(slot: number): void {
    const job = this.#jobs[slot]!;
    job.run((error) =>
      this.#process.enter(() => {
        const [start, end] = [startOf(job.range), endOf(job.range)];
        if (error !== 0) this.volume.integrity.noteUnknown(start, end);
        const outcome = error === 0 || this.#mutation === 'swallow-write-error' ? 'done' : 'failed';
        if (job.isHeld) job.ended(outcome);
        else this.#release(slot, outcome);
      }),
    );
  }

  #release(slot: number, outcome: JobOutcome = 'dropped'): void {
    const { range, isHeld, hasBegun } = this.#jobs[slot]!;
    const granted = new SlotQueue();
    if (hasBegun) this.volume.integrity.written(startOf(range), endOf(range));
    this.volume.order.release(slot, granted);
    if (isHeld) this.#jobs[slot]!.ended = () => {};
    this.#end(slot, outcome);
    this.#start(granted);
    this.#finishDrains();
  }

  #end(slot: number, outcome: JobOutcome): void {
    const job = this.#jobs[slot]!;
    this.#jobs[slot] = null;
    this.#slots.give(slot);
    job.ended(outcome);
    const next = this.#queue.shift();
    if (next !== undefined) this.#admit(next);
  }

  #pageCommitted(page: number): void {
    const waiting = this.#arming;
    this.#arming = [];
    for (const slot of waiting) {
      const { range } = this.#jobs[slot]!;
      if (this.volume.integrity.isArmed(startOf(range), endOf(range))) {
        this.#run(slot);
      } else {
        this.#arming.push(slot);
        this.#mark(range);
      }
    }
    const { pageState } = this.volume.integrity;
    this.#tagging = this.#tagging.filter(({ pages, done }) => {
      if (pageState[page] === PAGE_IDLE) pages.delete(page);
      if (pages.size > 0) return true;
      done();
      return false;
    });
    this.#committer.flush();
  }

  #finishDrains(): void {
    const isDrained = ({ owners }: { readonly owners: ReadonlySet<number> }): boolean =>
      !this.#jobs.some((job) => job !== null && owners.has(job.owner));
    const over = this.#drains.filter(isDrained);
    this.#drains = this.#drains.filter((drain) => !isDrained(drain));
    // What follows may drop others.
    for (const { done } of over) done();
  }

  #io(): NodeIo {
    const words = new Uint32Array((16 * PAGE_BYTES) / 4);
    const memory: NodeMemory = {
      words,
      bytes: new Uint8Array(words.buffer),
      view: new DataView(words.buffer),
      address: 0,
    };
    const refuse = (): never => {
      throw new Error('not simulated');
    };
    return {
      memory,
      clock: new Float64Array(1),
      sink: null,
      ...{ accept: refuse, receive: refuse, receivePayload: refuse, send: refuse, sendMessage: refuse },
      ...{ shutdown: refuse, close: refuse, read: refuse, fallocate: refuse, checksumBlocks: refuse },
      ...{ seekData: refuse, seekHole: refuse },
      mapWords: () => CHECKSUMS,
      write: (_fd, block, at, lengthBytes, _durable, key) => {
        // The file's first page is its header.
        const first = ((block - 1) * PAGE_BYTES) / 4;
        const used = words.slice(at / 4, (at + lengthBytes) / 4);
        this.#disk.writeRegions(first, used, () =>
          this.#process.enter(() => this.#committer.complete(key, lengthBytes)),
        );
      },
      dataSync: (fd, key) => {
        if (key < CLEAN_BASE) refuse();
        const done = (): void => this.#process.enter(() => this.#cleaner.complete(key, 0));
        if (fd === DATA_FD) this.#disk.sync(done);
        else this.#process.after(0.1, done);
      },
    };
  }
}

function startOf({ offset }: ByteRange): number {
  return offset / BLOCK_BYTES;
}

function endOf({ offset, length }: ByteRange): number {
  return (offset + length) / BLOCK_BYTES;
}

export function unitsOf({ offset, length }: ByteRange): number[] {
  return Array.from({ length: length / UNIT_BYTES }, (_, i) => unitAt(offset + i * UNIT_BYTES));
}

/** Words of a region map on disk. */
export const REGION_WORDS = Math.ceil(SIZE_BYTES / (1024 * 1024) / REGIONS_PER_PAGE) * 1024;
