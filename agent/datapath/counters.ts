/** What a queue counts, in memory shared with the main thread, which reads it when it is scraped. */

export const COUNTERS = [
  'readOps',
  'writeOps',
  'flushOps',
  'trimOps',
  'readBytes',
  'writeBytes',
  'errors',
  'failovers',
  'overlaps',
  'inFlight',
  'enters',
  'sqes',
] as const;

export type Counter = (typeof COUNTERS)[number];

export const CounterIndex = Object.fromEntries(COUNTERS.map((name, index) => [name, index])) as Readonly<
  Record<Counter, number>
>;

/** One writer (the worker), any readers; a torn value is impossible: aligned 64-bit stores. */
export function openCounters(shared: SharedArrayBuffer): Float64Array {
  return new Float64Array(shared);
}

export function createCounters(): SharedArrayBuffer {
  return new SharedArrayBuffer(COUNTERS.length * Float64Array.BYTES_PER_ELEMENT);
}
