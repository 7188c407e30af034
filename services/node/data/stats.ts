/**
 * A worker's counters: 64-bit floats in shared memory, written by the worker alone and read by the main thread when
 * metrics are scraped. No message, no lock, no allocation.
 */

const NAMES = [
  'connections',
  'connectionsAccepted',
  'connectionsRefused',
  'connectionsFailed',
  'handovers',
  'reads',
  'writes',
  'flushes',
  'trims',
  'writeZeroes',
  'others',
  'readBytes',
  'writtenBytes',
  'errors',
  'ioErrors',
  'receives',
  'sends',
  'overlapWaits',
  'memoryWaits',
  'readModifyWrites',
  'checksumErrors',
  'checksumRetries',
  'regionWaits',
  'regionPageWrites',
  'poolFreeBytes',
  'enters',
  'heapUsedBytes',
  'heapAllocatedBytes',
  'gcRuns',
  'gcSeconds',
] as const;

export type StatName = (typeof NAMES)[number];

/** The index of each counter. */
export const Stat = Object.freeze(
  Object.fromEntries(NAMES.map((name, index) => [name, index])) as Record<StatName, number>,
);

export const STATS_SIZE_BYTES = NAMES.length * 8;

export function createStats(): SharedArrayBuffer {
  return new SharedArrayBuffer(STATS_SIZE_BYTES);
}

export function statNames(): readonly StatName[] {
  return NAMES;
}
