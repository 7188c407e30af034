/**
 * What the writer has written to a replica since it joined: a rebuild must not put older content over it. By sectors, as
 * a write of part of a block leaves the rest of it old. Memory only for regions that are written, 256 bytes each.
 */
import { REGION_SIZE_BYTES } from '../store/region-table.ts';

export const SECTOR_BYTES = 512;
const SECTORS_PER_REGION = REGION_SIZE_BYTES / SECTOR_BYTES;

export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

export class FreshMap {
  readonly #regions = new Map<number, Uint8Array>();

  /** A write of this range has begun. Parts of sectors do not count. */
  add(offset: number, length: number): void {
    const end = Math.floor((offset + length) / SECTOR_BYTES);
    for (let sector = Math.ceil(offset / SECTOR_BYTES); sector < end; sector++) {
      const region = Math.floor(sector / SECTORS_PER_REGION);
      let bits = this.#regions.get(region);
      if (bits === undefined) {
        bits = new Uint8Array(SECTORS_PER_REGION / 8);
        this.#regions.set(region, bits);
      }
      const at = sector % SECTORS_PER_REGION;
      bits[at >> 3] = bits[at >> 3]! | (1 << (at & 7));
    }
  }

  /** The parts of a range, in whole sectors, that were not written: what a rebuild may write. */
  gaps(offset: number, length: number): ByteRange[] {
    const gaps: ByteRange[] = [];
    let from = -1;
    const end = (offset + length) / SECTOR_BYTES;
    for (let sector = offset / SECTOR_BYTES; sector < end; sector++) {
      if (this.#has(sector)) {
        if (from >= 0) gaps.push({ offset: from * SECTOR_BYTES, length: (sector - from) * SECTOR_BYTES });
        from = -1;
      } else if (from < 0) {
        from = sector;
      }
    }
    if (from >= 0) gaps.push({ offset: from * SECTOR_BYTES, length: (end - from) * SECTOR_BYTES });
    return gaps;
  }

  #has(sector: number): boolean {
    const bits = this.#regions.get(Math.floor(sector / SECTORS_PER_REGION));
    if (bits === undefined) return false;
    const at = sector % SECTORS_PER_REGION;
    return (bits[at >> 3]! & (1 << (at & 7))) !== 0;
  }
}
