/**
 * What a worker's JavaScript heap costs: bytes allocated and time of garbage collection, from the heap's size before and
 * after each collection. V8's own `total_allocated_bytes` is of no use for this: each time it is read, it counts the rest of
 * the current allocation buffer (some 200 KB) as allocated.
 */
import { GCProfiler, getHeapStatistics } from 'node:v8';
import { Stat } from '../data/stats.ts';

export class HeapSampler {
  readonly #stats: Float64Array;
  #profiler: GCProfiler;
  #usedBytes: number;

  constructor(stats: Float64Array) {
    this.#stats = stats;
    this.#profiler = new GCProfiler();
    this.#profiler.start();
    this.#usedBytes = getHeapStatistics().used_heap_size;
  }

  /** Adds what happened since the last call. Allocates a little itself: not for every batch. */
  sample(): void {
    const stats = this.#stats;
    // A profiler runs once. Between the two nothing is allocated that could be collected unseen.
    const collections = this.#profiler.stop()?.statistics ?? [];
    this.#profiler = new GCProfiler();
    this.#profiler.start();
    let allocatedBytes = 0;
    let collectingUs = 0;
    for (const { beforeGC, afterGC, cost } of collections) {
      allocatedBytes += beforeGC.heapStatistics.usedHeapSize - this.#usedBytes;
      this.#usedBytes = afterGC.heapStatistics.usedHeapSize;
      collectingUs += cost;
    }
    const usedBytes = getHeapStatistics().used_heap_size;
    allocatedBytes += usedBytes - this.#usedBytes;
    this.#usedBytes = usedBytes;
    stats[Stat.heapUsedBytes] = usedBytes;
    stats[Stat.heapAllocatedBytes] = stats[Stat.heapAllocatedBytes]! + allocatedBytes;
    stats[Stat.gcRuns] = stats[Stat.gcRuns]! + collections.length;
    stats[Stat.gcSeconds] = stats[Stat.gcSeconds]! + collectingUs / 1e6;
  }
}
