/**
 * What a queue counts, in memory shared with the main thread, which reads it when it is scraped: counters, then latency
 * histograms (latency.ts).
 */
import { latencyNumbers } from './latency.ts';
import { REPLICAS_COUNT_MAX } from './mirror.ts';

export const COUNTERS = [
  'readOps',
  'writeOps',
  'flushOps',
  'trimOps',
  'readBytes',
  'writeBytes',
  'errors',
  /** Reads that a replica answered with an error; another one was asked then. */
  'readErrors',
  /** Reads moved to another replica. */
  'failovers',
  /** Requests sent to the same replica again, after it was away. */
  'retries',
  'overlaps',
  'inFlight',
  'enters',
  'sqes',
  /** Waits that began with polling; those of them that it ended. */
  'polls',
  'pollHits',
  /** Payloads of writes handed to the kernel without a copy: SEND_ZC by its notifications, splice. */
  'zeroCopySends',
  /** Of SEND_ZC's, those that the kernel copied after all (IORING_NOTIF_USAGE_ZC_COPIED); splice does not tell. */
  'zeroCopyCopied',
] as const;

export type Counter = (typeof COUNTERS)[number];

export const CounterIndex = Object.fromEntries(COUNTERS.map((name, index) => [name, index])) as Readonly<
  Record<Counter, number>
>;

/** One writer (the worker), any readers; a torn value is impossible: aligned 64-bit stores. */
export function openCounters(shared: SharedArrayBuffer): Float64Array {
  return new Float64Array(shared, 0, COUNTERS.length);
}

/** The histograms behind the counters, for LatencyRecorder and readLatency. */
export function openLatency(shared: SharedArrayBuffer): Float64Array {
  return new Float64Array(shared, COUNTERS.length * Float64Array.BYTES_PER_ELEMENT);
}

/** A queue's memory, zeroed. */
export function createCounters(): SharedArrayBuffer {
  const count = COUNTERS.length + latencyNumbers(REPLICAS_COUNT_MAX);
  return new SharedArrayBuffer(count * Float64Array.BYTES_PER_ELEMENT);
}
