/**
 * Latency histograms of one queue, in the memory that it shares with the main thread: for the device and for each replica,
 * by kind of request. Recording reads the ring's clock, one time a batch, and increments two numbers.
 *
 * Buckets are exponential with four steps an octave, the first four a microsecond each:
 *   0 1 2 3 | 4 5 6 7 | 8 10 12 14 | 16 20 24 28 | 32 …
 */
import { Operation, type RequestTable } from './request.ts';

export const LATENCY_KINDS = ['read', 'write', 'flush', 'trim'] as const;
export type LatencyKind = (typeof LATENCY_KINDS)[number];

/** Row of a request, by NBD's number of its operation. */
const ROW_BY_OPERATION = new Uint8Array(Operation.WRITE_ZEROES + 1);
ROW_BY_OPERATION[Operation.READ] = 0;
ROW_BY_OPERATION[Operation.WRITE] = 1;
ROW_BY_OPERATION[Operation.FLUSH] = 2;
ROW_BY_OPERATION[Operation.TRIM] = 3;
ROW_BY_OPERATION[Operation.WRITE_ZEROES] = 3;

/** 2^26 us, more than a minute: whatever takes longer counts there. */
const OCTAVE_MAX = 26;
const STEPS = 4;
export const LATENCY_BUCKETS = OCTAVE_MAX * STEPS;
const LATENCY_US_MAX = 2 ** (OCTAVE_MAX + 1) - 1;
/** Buckets, then the sum in microseconds. */
const ROW_NUMBERS = LATENCY_BUCKETS + 1;
const SOURCE_NUMBERS = LATENCY_KINDS.length * ROW_NUMBERS;

/** Whose latency: the device's, or that of a replica by its index. */
export const DEVICE_LATENCY = 0;
export function replicaLatency(replica: number): number {
  return 1 + replica;
}

/** Float64 numbers that the histograms of a device and `replicaCount` replicas take. */
export function latencyNumbers(replicaCount: number): number {
  return (1 + replicaCount) * SOURCE_NUMBERS;
}

/** The bucket of a latency in whole microseconds, 0 ≤ us ≤ LATENCY_US_MAX. */
export function latencyBucket(us: number): number {
  if (us < STEPS) return us;
  const octave = 31 - Math.clz32(us);
  return (octave - 1) * STEPS + ((us >> (octave - 2)) & (STEPS - 1));
}

/** The first microsecond behind a bucket. */
export function latencyBucketEndUs(bucket: number): number {
  if (bucket < STEPS) return bucket + 1;
  const octave = Math.floor(bucket / STEPS) + 1;
  return (STEPS + (bucket % STEPS) + 1) * 2 ** (octave - 2);
}

/** Records one source's latencies; allocates nothing after construction. */
export class LatencyRecorder {
  readonly #numbers: Float64Array;
  readonly #base: number;
  readonly #clock: Float64Array;
  readonly #requests: RequestTable;
  /** Per tag, on the ring's clock. */
  readonly #begunUs: Float64Array;

  /** @param numbers of the queue, from `openLatency` @param clock of the queue's ring */
  constructor(options: {
    numbers: Float64Array;
    source: number;
    clock: Float64Array;
    requests: RequestTable;
  }) {
    this.#numbers = options.numbers;
    this.#base = options.source * SOURCE_NUMBERS;
    this.#clock = options.clock;
    this.#requests = options.requests;
    this.#begunUs = new Float64Array(options.requests.depth);
  }

  /** Forgets what was recorded: it is another replica's from now on. */
  reset(): void {
    this.#numbers.fill(0, this.#base, this.#base + SOURCE_NUMBERS);
  }

  /** The request in row `tag` begins now: when the batch arrived that is being handled. */
  begin(tag: number): void {
    this.#begunUs[tag] = this.#clock[0]!;
  }

  /** It is done. */
  end(tag: number): void {
    const us = this.#clock[0]! - this.#begunUs[tag]!;
    const numbers = this.#numbers;
    const row = this.#base + ROW_BY_OPERATION[this.#requests.operation[tag]!]! * ROW_NUMBERS;
    const at = row + latencyBucket((us < LATENCY_US_MAX ? us : LATENCY_US_MAX) | 0);
    numbers[at] = numbers[at]! + 1;
    numbers[row + LATENCY_BUCKETS] = numbers[row + LATENCY_BUCKETS]! + us;
  }
}

export interface LatencyHistogram {
  readonly count: number;
  readonly sumUs: number;
  /** By bucket, see `latencyBucketEndUs`. */
  readonly buckets: Float64Array;
}

/** The sum of several queues' histograms of one source and kind. @param queues each from `openLatency` */
export function readLatency(
  queues: readonly Float64Array[],
  source: number,
  kind: LatencyKind,
): LatencyHistogram {
  const row = source * SOURCE_NUMBERS + LATENCY_KINDS.indexOf(kind) * ROW_NUMBERS;
  const buckets = new Float64Array(LATENCY_BUCKETS);
  let count = 0;
  let sumUs = 0;
  for (const numbers of queues) {
    for (let bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
      const seen = numbers[row + bucket]!;
      buckets[bucket] = buckets[bucket]! + seen;
      count += seen;
    }
    sumUs += numbers[row + LATENCY_BUCKETS]!;
  }
  return { count, sumUs, buckets };
}
