/**
 * One replica made equal to another, region by region: a rebuild, or the reconciling after a writer died. Pure; reading
 * from the source and writing here are the host's.
 *
 *   plan ──▶ per chunk: read from the source ──▶ the range is ours (write order) ──▶ write what is not fresh ──▶ … ──▶ flush
 *
 * Invariants:
 * - What is fresh is asked only while the chunk's range is ours: no write of the writer can come between.
 * - It ends once, and with success only after the flush.
 */
import { REGION_SIZE_BYTES, type RegionTable } from '../store/region-table.ts';
import type { ByteRange, FreshMap } from './fresh.ts';

/** Regions that a rebuild copies, ascending. @param source those that the source has written since the replica fell behind */
export function planRebuild(own: RegionTable, source: Iterable<number>, sinceEpoch: number): number[] {
  // Its own: what it had not flushed, and what an earlier rebuild or a lost writer has left here.
  return union(source, own.intents(), own.since(sinceEpoch));
}

/** Regions that reconciling copies, ascending. @param source those with an intent at the source */
export function planReconcile(own: RegionTable, source: Iterable<number>): number[] {
  return union(source, own.intents());
}

function union(...sets: Iterable<number>[]): number[] {
  const all = new Set<number>();
  for (const set of sets) for (const region of set) all.add(region);
  return [...all].sort((a, b) => a - b);
}

export interface ResyncHost {
  /** Reads a chunk from the source; ends in `readDone`. */
  read(slot: number, offset: number, length: number): void;
  /** Makes the chunk's range ours; ends in `granted`. */
  acquire(slot: number, offset: number, length: number): void;
  /** Writes parts of a chunk that was read (none is fine), and gives its range back; ends in `written`. */
  write(slot: number, parts: readonly ByteRange[]): void;
  /** Makes everything written durable; ends in `flushed`. */
  flush(): void;
  /** @param error null when the replicas are equal */
  ended(error: string | null): void;
}

export class Resync {
  readonly #regions: readonly number[];
  readonly #sizeBytes: number;
  readonly #chunkBytes: number;
  readonly #fresh: FreshMap | null;
  readonly #host: ResyncHost;
  readonly #chunks: (ByteRange | null)[];
  #regionIndex = 0;
  #offsetInRegion = 0;
  #activeCount = 0;
  #hasEnded = false;
  /** Bytes that were read, of `totalBytes`. */
  copiedBytes = 0;

  /** @param fresh null when there is no writer */
  constructor(options: {
    readonly regions: readonly number[];
    readonly sizeBytes: number;
    readonly chunkBytes: number;
    readonly parallel: number;
    readonly fresh: FreshMap | null;
    readonly host: ResyncHost;
  }) {
    this.#regions = options.regions;
    this.#sizeBytes = options.sizeBytes;
    this.#chunkBytes = options.chunkBytes;
    this.#fresh = options.fresh;
    this.#host = options.host;
    this.#chunks = new Array<ByteRange | null>(options.parallel).fill(null);
  }

  get totalBytes(): number {
    return this.#regions.length * REGION_SIZE_BYTES;
  }

  start(): void {
    this.#fill();
  }

  readDone(slot: number, error: string | null): void {
    if (this.#hasEnded) return;
    if (error !== null) {
      this.#end(error);
      return;
    }
    const chunk = this.#chunks[slot]!;
    this.copiedBytes += chunk.length;
    this.#host.acquire(slot, chunk.offset, chunk.length);
  }

  granted(slot: number): void {
    const { offset, length } = this.#chunks[slot]!;
    // One that has ended still gives its range back.
    if (this.#hasEnded) this.#host.write(slot, []);
    else
      this.#host.write(slot, this.#fresh === null ? [{ offset, length }] : this.#fresh.gaps(offset, length));
  }

  written(slot: number, error: string | null): void {
    this.#chunks[slot] = null;
    this.#activeCount--;
    if (this.#hasEnded) return;
    if (error !== null) this.#end(error);
    else this.#fill();
  }

  flushed(error: string | null): void {
    this.#end(error);
  }

  /** Stops it: nothing new is begun. */
  cancel(reason: string): void {
    this.#end(reason);
  }

  #fill(): void {
    for (let slot = 0; slot < this.#chunks.length; slot++) {
      if (this.#chunks[slot] !== null) continue;
      const chunk = this.#next();
      if (chunk === null) break;
      this.#chunks[slot] = chunk;
      this.#activeCount++;
      this.#host.read(slot, chunk.offset, chunk.length);
      if (this.#hasEnded) return;
    }
    if (this.#activeCount === 0 && !this.#hasEnded) this.#host.flush();
  }

  #next(): ByteRange | null {
    for (;;) {
      const region = this.#regions[this.#regionIndex];
      if (region === undefined) return null;
      const offset = region * REGION_SIZE_BYTES + this.#offsetInRegion;
      const end = Math.min(this.#sizeBytes, (region + 1) * REGION_SIZE_BYTES);
      if (offset >= end) {
        this.#regionIndex++;
        this.#offsetInRegion = 0;
        continue;
      }
      const length = Math.min(this.#chunkBytes, end - offset);
      this.#offsetInRegion += length;
      return { offset, length };
    }
  }

  #end(error: string | null): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.#host.ended(error);
  }
}
