/**
 * The volume of a simulation: large enough for two pages of the region map, of which five regions are used, eight units
 * each. A unit is what a disk writes or loses as a whole; its content is the number of the write that wrote it.
 */
import { REGION_SIZE_BYTES } from '@blockwire/node/store/region-table.ts';

/** Two pairs of neighbours, one of them across the pages of the region map. */
export const REGIONS: readonly number[] = [0, 1, 511, 512, 515];
export const UNITS_PER_REGION = 8;
export const UNIT_BYTES = REGION_SIZE_BYTES / UNITS_PER_REGION;
export const UNITS_COUNT = REGIONS.length * UNITS_PER_REGION;
export const SIZE_BYTES = 516 * REGION_SIZE_BYTES;
/** What a rebuild copies at a time. */
export const CHUNK_BYTES = 2 * UNIT_BYTES;

/** Others hold nothing. */
export function isUsed(region: number): boolean {
  return REGIONS.includes(region);
}

/** Where a unit lies. */
export function offsetOf(unit: number): number {
  return (
    REGIONS[Math.floor(unit / UNITS_PER_REGION)]! * REGION_SIZE_BYTES + (unit % UNITS_PER_REGION) * UNIT_BYTES
  );
}

/** The unit at an offset. */
export function unitAt(offset: number): number {
  const region = REGIONS.indexOf(Math.floor(offset / REGION_SIZE_BYTES));
  if (region < 0) throw new Error(`offset ${offset} is in no region that the simulation uses`);
  return region * UNITS_PER_REGION + (offset % REGION_SIZE_BYTES) / UNIT_BYTES;
}

/** Units that follow `unit` in the volume without a gap, itself included. */
export function runLength(unit: number): number {
  let count = 1;
  while (unit + count < UNITS_COUNT && offsetOf(unit + count) === offsetOf(unit) + count * UNIT_BYTES)
    count++;
  return count;
}
