/**
 * Clears the DIRTY bit of regions that have not been written for a while, so that little has to be recomputed after a
 * crash. Works from the tick, a cycle per volume at a time:
 *
 *   idle regions ──▶ fdatasync data ──▶ fdatasync checksums ──▶ clear those still not written ──▶ pages written
 *
 * A checkpoint (every write before it is acknowledged by all in-sync replicas) takes the same way for INTENT.
 */
import type { Mark } from '../replication/marks.ts';
import { REGION_DIRTY, REGION_INTENT } from '../store/region-table.ts';
import type { NodeIo } from './node-io.ts';
import type { RegionCommitter } from './region-commit.ts';
import type { Volume } from './volume.ts';

/** Completions with a data word from here on, below the next base, belong to cleanings. */
export const CLEAN_BASE = 0x2000_0000;
/** Ticks (100 ms) without a write after which a region is idle, and between two cleanings of a volume. */
const IDLE_STAMPS = 50;
const PAUSE_STAMPS = 20;
/** Pages (512 regions each) that one tick looks at. */
const SCAN_PAGES = 64;

interface Cycle {
  readonly volume: Volume;
  readonly flag: number;
  readonly stamp: number;
  readonly pages: readonly number[];
  readonly done: ((errno: number) => void) | null;
  dataSynced: boolean;
}

export interface CleanerHost {
  volumeFailed(volume: Volume, errno: number): void;
}

export class Cleaner {
  readonly #io: NodeIo;
  readonly #committer: RegionCommitter;
  readonly #host: CleanerHost;
  readonly #cycles = new Map<number, Cycle>();
  #keys = 0;

  constructor(io: NodeIo, committer: RegionCommitter, host: CleanerHost) {
    this.#io = io;
    this.#committer = committer;
    this.#host = host;
  }

  get idle(): boolean {
    return this.#cycles.size === 0;
  }

  /** Call for each volume at each tick. */
  tick(volume: Volume): void {
    const { integrity } = volume;
    integrity.stamp++;
    if (volume.readOnly || volume.cleanings > 0 || integrity.stamp < volume.cleanedStamp + PAUSE_STAMPS)
      return;
    // What the file cannot hold must be computed anew.
    if (integrity.lostChecksums) return;
    const stamp = integrity.stamp - IDLE_STAMPS;
    if (stamp <= 0) return;
    const { pageCount } = integrity.table;
    const pages: number[] = [];
    for (let i = Math.min(SCAN_PAGES, pageCount); i > 0; i--) {
      if (volume.cleanCursor >= pageCount) volume.cleanCursor = 0;
      const page = volume.cleanCursor++;
      if (integrity.hasIdle(page, stamp)) pages.push(page);
    }
    // Not the ones that are only just idle, but all that had no write since now: the syncs cover them.
    if (pages.length > 0) this.#begin(volume, REGION_DIRTY, stamp, pages, null);
  }

  /**
   * Clears the intents of everything that was written before the stamp (by default: before this call), once it is
   * flushed; calls back with 0 or an errno. The caller knows that all in-sync replicas have those writes.
   */
  checkpoint(volume: Volume, done: (errno: number) => void, stamp = ++volume.integrity.stamp): void {
    const pages = Array.from({ length: volume.integrity.table.pageCount }, (_, page) => page);
    this.#begin(volume, REGION_INTENT, stamp, pages, done);
  }

  /** CHECKPOINT has arrived. One that comes while another is under way does nothing: the next one covers more. */
  checkpointOf(volume: Volume, mark: Mark): void {
    const stamp = volume.membership?.covered(mark) ?? null;
    if (stamp === null || volume.checkpointing) return;
    volume.checkpointing = true;
    this.checkpoint(
      volume,
      () => {
        volume.checkpointing = false;
      },
      stamp,
    );
  }

  complete(key: number, result: number): void {
    const cycle = this.#cycles.get(key)!;
    const { volume } = cycle;
    if (result >= 0 && !cycle.dataSynced) {
      cycle.dataSynced = true;
      this.#io.dataSync(volume.integrity.checksumsFd, key);
      return;
    }
    this.#cycles.delete(key);
    volume.cleanings--;
    volume.cleanedStamp = volume.integrity.stamp;
    if (result < 0) this.#host.volumeFailed(volume, -result);
    else this.#clear(cycle);
    cycle.done?.(result < 0 ? -result : 0);
  }

  #begin(volume: Volume, flag: number, stamp: number, pages: readonly number[], done: Cycle['done']): void {
    const key = CLEAN_BASE + (this.#keys++ & 0xffff);
    volume.cleanings++;
    this.#cycles.set(key, { volume, flag, stamp, pages, done, dataSynced: false });
    this.#io.dataSync(volume.fd, key);
  }

  #clear(cycle: Cycle): void {
    const { volume, flag, stamp, pages } = cycle;
    const { integrity, order } = volume;
    for (const page of pages) {
      const cleared = integrity.clear(page, flag, stamp, (start, end) => order.overlaps(start, end));
      if (cleared > 0) this.#committer.request(volume, page);
    }
    this.#committer.flush();
  }
}
