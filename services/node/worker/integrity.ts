/**
 * What a worker knows of a volume's content beside the content: checksums, and regions with what is durable of them.
 *
 *   region:   clean ──first write──▶ marked ──page durable──▶ armed ──no writes for seconds,──▶ clean
 *                     (waits)                  (writes go)             data and checksums synced
 *
 * Only armed regions are written: DIRTY, INTENT and the current epoch of theirs are on the disk. A new epoch disarms all.
 */
import {
  REGION_DIRTY,
  REGION_INTENT,
  REGION_SIZE_BYTES,
  REGIONS_PER_PAGE,
  RegionTable,
} from '../store/region-table.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import type { MappedWords, NodeIo } from './node-io.ts';
import { SlotQueue } from './slots.ts';

export interface IntegrityFiles {
  readonly checksumsFd: number;
  readonly regionsFd: number;
  /** Entries of the file `regions`. */
  readonly regions: Uint32Array;
}

const REGION_BLOCKS = REGION_SIZE_BYTES / UNIT_BYTES;

/** What becomes of a page of regions: nothing, waits for its write, is written, is written and has changed since. */
export const PAGE_IDLE = 0;
export const PAGE_QUEUED = 1;
export const PAGE_WRITING = 2;
export const PAGE_CHANGED = 3;

const ARMED_FLAGS = REGION_DIRTY | REGION_INTENT;
/** A region that must not be cleaned before a restart. */
const STAMP_FOR_EVER = 0xffff_ffff;

export class Integrity {
  readonly checksumsFd: number;
  readonly regionsFd: number;
  /** The epoch that writes are tagged with. */
  epoch: number;
  /** Grows with every tick and every cleaning; regions carry that of their last write. */
  stamp = 1;
  table: RegionTable;
  pageState: Uint8Array;
  /** Dirty regions of each page. */
  dirtyCounts: Uint16Array;
  /** Pages queued or being written. */
  busyPages = 0;
  /** Writes that wait for regions to be armed. */
  readonly waiting = new SlotQueue();
  #checksums: MappedWords;
  #armed: Uint8Array;
  #stamps: Uint32Array;
  /** Regions where an operation failed half way: any content of a block is as good as any other. */
  readonly #unknown = new Set<number>();
  readonly #io: NodeIo;

  constructor(io: NodeIo, files: IntegrityFiles, sizeBytes: number, epoch: number, readOnly: boolean) {
    this.#io = io;
    this.checksumsFd = files.checksumsFd;
    this.regionsFd = files.regionsFd;
    this.epoch = epoch;
    this.#checksums = io.mapWords(files.checksumsFd, Math.ceil(sizeBytes / UNIT_BYTES), !readOnly);
    this.table = new RegionTable(sizeBytes, files.regions);
    this.#armed = new Uint8Array(this.table.count);
    this.#stamps = new Uint32Array(this.table.count);
    this.pageState = new Uint8Array(this.table.pageCount);
    this.dirtyCounts = new Uint16Array(this.table.pageCount);
    this.#takeStock();
  }

  /** A checksum for each block of 4096: crc ^ crc of zeroes. */
  get checksums(): Uint32Array {
    return this.#checksums.words;
  }

  /** Whether pages of the checksums' file could not be had: it was cut, or its disk fails. */
  get lostChecksums(): boolean {
    return this.#checksums.faultCount() > 0;
  }

  /** Makes room for a larger volume, whose files are longer already. */
  grow(sizeBytes: number): void {
    this.#checksums.release();
    this.#checksums = this.#io.mapWords(this.checksumsFd, Math.ceil(sizeBytes / UNIT_BYTES), true);
    const { pageState } = this;
    const armed = this.#armed;
    const stamps = this.#stamps;
    this.table = new RegionTable(sizeBytes, this.table.words);
    this.#armed = new Uint8Array(this.table.count);
    this.#armed.set(armed);
    this.#stamps = new Uint32Array(this.table.count);
    this.#stamps.set(stamps);
    this.pageState = new Uint8Array(this.table.pageCount);
    this.pageState.set(pageState);
    this.dirtyCounts = new Uint16Array(this.table.pageCount);
    this.#takeStock();
  }

  /** Unmaps. Nothing of the volume may be at work. */
  release(): void {
    this.#checksums.release();
  }

  /** Whether every region of a range is armed. Notes that the range is written now. */
  begin(start: number, end: number): boolean {
    const last = Math.floor((end - 1) / REGION_BLOCKS);
    let armed = true;
    for (let region = Math.floor(start / REGION_BLOCKS); region <= last; region++) {
      if (this.#stamps[region] !== STAMP_FOR_EVER) this.#stamps[region] = this.stamp;
      if (this.#armed[region] === 0) armed = false;
    }
    return armed;
  }

  /** Whether every region of a range is armed. */
  isArmed(start: number, end: number): boolean {
    const last = Math.floor((end - 1) / REGION_BLOCKS);
    for (let region = Math.floor(start / REGION_BLOCKS); region <= last; region++) {
      if (this.#armed[region] === 0) return false;
    }
    return true;
  }

  /** Marks the regions of a range that are not armed; tells each page that has changed. */
  mark(start: number, end: number, pageChanged: (page: number) => void): void {
    const last = Math.floor((end - 1) / REGION_BLOCKS);
    let told = -1;
    for (let region = Math.floor(start / REGION_BLOCKS); region <= last; region++) {
      if (this.#armed[region] !== 0) continue;
      const page = Math.floor(region / REGIONS_PER_PAGE);
      const flags = this.table.flagsOf(region);
      if ((flags & REGION_DIRTY) === 0) this.dirtyCounts[page]!++;
      // Marked before, by a write that waits too: its page is on the way.
      if ((flags & ARMED_FLAGS) === ARMED_FLAGS && this.table.epochOf(region) === this.epoch) {
        if (this.pageState[page] !== PAGE_IDLE) continue;
      }
      this.table.set(region, this.epoch, flags | ARMED_FLAGS);
      if (page !== told) pageChanged(page);
      told = page;
    }
  }

  /** A write, or an attempt at one, is over. */
  written(start: number, end: number): void {
    const last = Math.floor((end - 1) / REGION_BLOCKS);
    for (let region = Math.floor(start / REGION_BLOCKS); region <= last; region++) {
      if (this.#stamps[region] !== STAMP_FOR_EVER) this.#stamps[region] = this.stamp;
    }
  }

  /** An operation that writes failed in this range: its blocks hold anything, until the next start recomputes them. */
  noteUnknown(start: number, end: number): void {
    const last = Math.floor((end - 1) / REGION_BLOCKS);
    for (let region = Math.floor(start / REGION_BLOCKS); region <= last; region++) {
      this.#unknown.add(region);
      this.#stamps[region] = STAMP_FOR_EVER;
    }
  }

  isUnknown(block: number): boolean {
    return this.#unknown.size > 0 && this.#unknown.has(Math.floor(block / REGION_BLOCKS));
  }

  /** What reads as zeroes now: whole blocks. */
  zeroed(start: number, end: number): void {
    this.checksums.fill(0, start, end);
  }

  /** Regions with an intent get the new epoch. Returns the pages that have to become durable. */
  installEpoch(epoch: number): number[] {
    if (epoch < this.epoch) return [];
    this.epoch = epoch;
    this.#armed.fill(0);
    return this.table.tagIntents(epoch);
  }

  /** A page is durable as `words` says: arms what has not changed since. */
  committed(page: number, words: Uint32Array, at: number): void {
    const first = page * REGIONS_PER_PAGE;
    const count = Math.min(REGIONS_PER_PAGE, this.table.count - first);
    for (let i = 0; i < count; i++) {
      const epoch = words[at + i * 2]!;
      const flags = words[at + i * 2 + 1]!;
      const durable =
        (flags & ARMED_FLAGS) === ARMED_FLAGS &&
        epoch === this.epoch &&
        this.table.epochOf(first + i) === epoch &&
        this.table.flagsOf(first + i) === flags;
      this.#armed[first + i] = durable ? 1 : 0;
    }
  }

  /** Whether a page has a dirty region that was not written since the stamp. */
  hasIdle(page: number, stamp: number): boolean {
    if (this.dirtyCounts[page] === 0) return false;
    const end = Math.min(this.table.count, (page + 1) * REGIONS_PER_PAGE);
    for (let region = page * REGIONS_PER_PAGE; region < end; region++) {
      if (this.#stamps[region]! < stamp && this.table.isDirty(region)) return true;
    }
    return false;
  }

  /**
   * Clears a flag of the page's regions that were not written since the stamp and that `isBusy` does not name. The page
   * must be written then. Returns how many had it.
   */
  clear(page: number, flag: number, stamp: number, isBusy: (start: number, end: number) => boolean): number {
    const end = Math.min(this.table.count, (page + 1) * REGIONS_PER_PAGE);
    let cleared = 0;
    for (let region = page * REGIONS_PER_PAGE; region < end; region++) {
      const flags = this.table.flagsOf(region);
      if ((flags & flag) === 0 || this.#stamps[region]! >= stamp) continue;
      if (isBusy(region * REGION_BLOCKS, (region + 1) * REGION_BLOCKS)) continue;
      this.table.set(region, this.table.epochOf(region), flags & ~flag);
      this.#armed[region] = 0;
      if (flag === REGION_DIRTY) this.dirtyCounts[page]!--;
      cleared++;
    }
    return cleared;
  }

  #takeStock(): void {
    this.dirtyCounts.fill(0);
    for (let region = 0; region < this.table.count; region++) {
      if (this.table.isDirty(region)) this.dirtyCounts[Math.floor(region / REGIONS_PER_PAGE)]!++;
    }
  }
}
