/**
 * What a replica knows of each of its regions (1 MiB): the epoch of its last write and two bits. Held in RAM as the words
 * of the file `regions`, page by page; who persists them: worker/region-commit.ts, and the store at opening and closing.
 *
 *   page 0   "BWREGION", format version u32, region size u32, region count u64, CRC32C of these 24 bytes; zeroes
 *   page 1…  512 regions each: epoch u32, flags u32. Little-endian.
 *
 * A region's eight bytes never cross a sector, so that a page torn by a crash holds the old or the new value of each.
 */
import { native } from '@blockwire/native/native.ts';

export const REGION_SIZE_BYTES = 1024 * 1024;
export const PAGE_SIZE_BYTES = 4096;
export const REGIONS_PER_PAGE = 512;
export const PAGE_WORDS = 1024;
/** Epochs are stored in 32 bits. */
export const EPOCH_MAX = 0xffff_ffff;

/** Writes may have changed data that neither the disk nor the checksums have for sure: recomputed after a crash. */
export const REGION_DIRTY = 1;
/** Written since the last checkpoint: other replicas may lack it (mirroring). */
export const REGION_INTENT = 2;

const MAGIC = 'BWREGION';
const FORMAT_VERSION = 1;
const HEADER_BYTES = 24;

export function regionCountOf(sizeBytes: number): number {
  return Math.ceil(sizeBytes / REGION_SIZE_BYTES);
}

/** Bytes of the file `regions` of a volume of this size. */
export function regionFileSizeOf(sizeBytes: number): number {
  return PAGE_SIZE_BYTES * (1 + Math.ceil(regionCountOf(sizeBytes) / REGIONS_PER_PAGE));
}

/** Where in the file a page of regions (from 0) lies. */
export function regionPageOffset(page: number): number {
  return PAGE_SIZE_BYTES * (1 + page);
}

export function encodeRegionHeader(regionCount: number): Uint8Array {
  const bytes = new Uint8Array(PAGE_SIZE_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode(MAGIC), 0);
  view.setUint32(8, FORMAT_VERSION, true);
  view.setUint32(12, REGION_SIZE_BYTES, true);
  view.setBigUint64(16, BigInt(regionCount), true);
  view.setUint32(HEADER_BYTES, native.crc32c(bytes.subarray(0, HEADER_BYTES), 0), true);
  return bytes;
}

/** What is wrong with a header page for a volume of that many regions; null when nothing is. */
export function checkRegionHeader(page: Uint8Array, regionCount: number): string | null {
  if (page.length < PAGE_SIZE_BYTES) return 'it was cut';
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  if (new TextDecoder('latin1').decode(page.subarray(0, 8)) !== MAGIC) return 'its header has not the magic';
  if (view.getUint32(HEADER_BYTES, true) !== native.crc32c(page.subarray(0, HEADER_BYTES), 0)) {
    return 'its header does not match its checksum';
  }
  if (view.getUint32(8, true) !== FORMAT_VERSION) return `its version is not ${FORMAT_VERSION}`;
  if (view.getUint32(12, true) !== REGION_SIZE_BYTES)
    return `its regions are not of ${REGION_SIZE_BYTES} bytes`;
  // Larger is what a crash in the middle of a resize leaves.
  if (view.getBigUint64(16, true) < BigInt(regionCount)) return 'it has too few regions';
  return null;
}

/** The entries of one volume's regions. */
export class RegionTable {
  readonly count: number;
  readonly pageCount: number;
  /** Whole pages of {epoch, flags}. */
  readonly words: Uint32Array<ArrayBuffer>;

  /** @param words entries as read from the file; null: all zero. Missing ones are zero. */
  constructor(sizeBytes: number, words: Uint32Array | null) {
    this.count = regionCountOf(sizeBytes);
    this.pageCount = Math.ceil(this.count / REGIONS_PER_PAGE);
    this.words = new Uint32Array(this.pageCount * PAGE_WORDS);
    if (words !== null) this.words.set(words.subarray(0, this.words.length));
  }

  epochOf(region: number): number {
    return this.words[region * 2]!;
  }

  flagsOf(region: number): number {
    return this.words[region * 2 + 1]!;
  }

  set(region: number, epoch: number, flags: number): void {
    this.words[region * 2] = epoch;
    this.words[region * 2 + 1] = flags;
  }

  isDirty(region: number): boolean {
    return (this.flagsOf(region) & REGION_DIRTY) !== 0;
  }

  hasIntent(region: number): boolean {
    return (this.flagsOf(region) & REGION_INTENT) !== 0;
  }

  /** Whether it was written since that epoch was installed. Never written at all: epoch and flags are 0. */
  changedSince(region: number, epoch: number): boolean {
    return this.epochOf(region) >= epoch && (this.flagsOf(region) !== 0 || this.epochOf(region) !== 0);
  }

  /** Regions written since `epoch` was installed, ascending. */
  *since(epoch: number): IterableIterator<number> {
    for (let region = 0; region < this.count; region++) if (this.changedSince(region, epoch)) yield region;
  }

  /** Regions with an intent, ascending. */
  *intents(): IterableIterator<number> {
    for (let region = 0; region < this.count; region++) if (this.hasIntent(region)) yield region;
  }

  /** Tags what has an intent with a newly installed epoch. Returns the pages that changed, ascending. */
  tagIntents(epoch: number): number[] {
    const pages: number[] = [];
    for (let region = 0; region < this.count; region++) {
      if (!this.hasIntent(region) || this.epochOf(region) >= epoch) continue;
      this.words[region * 2] = epoch;
      const page = Math.floor(region / REGIONS_PER_PAGE);
      if (pages.at(-1) !== page) pages.push(page);
    }
    return pages;
  }
}
