/**
 * Makes pages of region maps durable, for all volumes of a worker. One write per page at a time; what changes meanwhile
 * goes with the next one, so that any number of first writes into a page's regions share one write of it.
 */
import { PAGE_SIZE_BYTES, PAGE_WORDS, regionPageOffset } from '../store/region-table.ts';
import { type BufferPool, UNIT_BYTES } from './buffer-pool.ts';
import { PAGE_CHANGED, PAGE_IDLE, PAGE_QUEUED, PAGE_WRITING } from './integrity.ts';
import type { NodeIo } from './node-io.ts';
import type { Volume } from './volume.ts';

/** Completions with a data word from here on, below the next base, belong to page writes. */
export const COMMIT_BASE = 0x1000_0000;
const BUFFERS_ORDER = 4;
const BUFFERS_COUNT = 1 << BUFFERS_ORDER;

export interface RegionCommitHost {
  /** The page is durable as it was when its write began; or it could not be written. */
  pageCommitted(volume: Volume, page: number, errno: number): void;
}

interface Commit {
  readonly volume: Volume;
  readonly page: number;
}

export class RegionCommitter {
  readonly #io: NodeIo;
  readonly #host: RegionCommitHost;
  readonly #at: number;
  readonly #free: number[] = [];
  readonly #writing: (Commit | null)[] = new Array<Commit | null>(BUFFERS_COUNT).fill(null);
  readonly #queue: Commit[] = [];
  /** Pages written so far. */
  writtenCount = 0;

  /** Takes its memory from the pool for good: a write that waits for its region must never wait for memory here. */
  constructor(io: NodeIo, pool: BufferPool, host: RegionCommitHost) {
    this.#io = io;
    this.#host = host;
    this.#at = pool.allocate(BUFFERS_ORDER);
    for (let i = BUFFERS_COUNT - 1; i >= 0; i--) this.#free.push(i);
  }

  get idle(): boolean {
    return this.#free.length === BUFFERS_COUNT && this.#queue.length === 0;
  }

  /** The page of the volume's table has changed and must become durable. */
  request(volume: Volume, page: number): void {
    const { pageState } = volume.integrity;
    if (pageState[page] === PAGE_WRITING) pageState[page] = PAGE_CHANGED;
    if (pageState[page] !== PAGE_IDLE) return;
    pageState[page] = PAGE_QUEUED;
    volume.integrity.busyPages++;
    this.#queue.push({ volume, page });
  }

  /** Begins what can begin; once for everything that a batch has changed. */
  flush(): void {
    while (this.#queue.length > 0 && this.#free.length > 0) this.#write(this.#queue.shift()!);
  }

  complete(key: number, result: number): void {
    const buffer = key - COMMIT_BASE;
    const { volume, page } = this.#writing[buffer]!;
    const { integrity } = volume;
    this.#writing[buffer] = null;
    this.#free.push(buffer);
    const errno = result === PAGE_SIZE_BYTES ? 0 : result < 0 ? -result : 5;
    if (errno === 0) {
      this.writtenCount++;
      integrity.committed(page, this.#io.memory.words, (this.#at + buffer * PAGE_SIZE_BYTES) / 4);
    }
    const changed = integrity.pageState[page] === PAGE_CHANGED;
    integrity.pageState[page] = changed ? PAGE_QUEUED : PAGE_IDLE;
    if (changed) this.#queue.push({ volume, page });
    else integrity.busyPages--;
    this.#host.pageCommitted(volume, page, errno);
  }

  #write(commit: Commit): void {
    const { integrity } = commit.volume;
    const buffer = this.#free.pop()!;
    const at = this.#at + buffer * PAGE_SIZE_BYTES;
    const from = commit.page * PAGE_WORDS;
    this.#io.memory.words.set(integrity.table.words.subarray(from, from + PAGE_WORDS), at / 4);
    integrity.pageState[commit.page] = PAGE_WRITING;
    this.#writing[buffer] = commit;
    const key = COMMIT_BASE + buffer;
    const block = regionPageOffset(commit.page) / UNIT_BYTES;
    this.#io.write(integrity.regionsFd, block, at, PAGE_SIZE_BYTES, true, key);
  }
}
