/** What a copy needs of its source: which regions, and chunks with their holes. */
import { CHANGED_SINCE_PREFIX, INTENT_CONTEXT } from '../data/export.ts';
import type { ByteRange } from '../replication/fresh.ts';
import { REGION_SIZE_BYTES } from '../store/region-table.ts';
import { UNIT_BYTES } from '../worker/buffer-pool.ts';
import { type Extent, Peer } from './peer.ts';

const ALLOCATION_CONTEXT = 'base:allocation';
const HOLE = 1;

export interface SourceOptions {
  /** host:port */
  readonly address: string;
  /** With capability and epoch. */
  readonly exportName: string;
  /** Regions written since this epoch are asked for; null: those with an intent. */
  readonly sinceEpoch: number | null;
  readonly signal: AbortSignal;
}

export class Source {
  readonly #peer: Peer;
  readonly #context: string;

  private constructor(peer: Peer, context: string) {
    this.#peer = peer;
    this.#context = context;
  }

  /** Rejects with BW_PEER_UNREACHABLE; the reason is the peer's when it refuses. */
  static async open({ address, exportName, sinceEpoch, signal }: SourceOptions): Promise<Source> {
    const context = sinceEpoch === null ? INTENT_CONTEXT : `${CHANGED_SINCE_PREFIX}${sinceEpoch}`;
    const contexts = [ALLOCATION_CONTEXT, context];
    return new Source(await Peer.open({ address, exportName, contexts, signal }), context);
  }

  get sizeBytes(): number {
    return this.#peer.sizeBytes;
  }

  get receivedBytes(): number {
    return this.#peer.receivedBytes;
  }

  /** Numbers of the regions that the source has written since, or has an intent for. */
  async regions(): Promise<Uint32Array> {
    const extents = await this.#peer.status(this.#context, 0, this.#peer.sizeBytes);
    const regions: number[] = [];
    for (const { offset, length, status } of extents) {
      if (status === 0) continue;
      const last = Math.ceil((offset + length) / REGION_SIZE_BYTES);
      for (let region = Math.floor(offset / REGION_SIZE_BYTES); region < last; region++) regions.push(region);
    }
    return Uint32Array.from(regions);
  }

  /**
   * Reads a chunk, which begins with a block; only what is allocated is moved, the rest becomes zeroes. Resolves with the
   * chunk's blocks: 1 where the source has a hole.
   */
  async read({ offset, length }: ByteRange, into: Uint8Array): Promise<Uint8Array> {
    const holes = new Uint8Array(Math.ceil(length / UNIT_BYTES));
    const extents = await this.#peer.status(ALLOCATION_CONTEXT, offset, length);
    into.fill(0);
    const reads: Promise<void>[] = [];
    for (const [from, to] of dataRuns(offset, extents, holes)) {
      const end = Math.min(to * UNIT_BYTES, length);
      reads.push(this.#peer.read(offset + from * UNIT_BYTES, into.subarray(from * UNIT_BYTES, end)));
    }
    await Promise.all(reads);
    return holes;
  }

  close(): void {
    this.#peer.close();
  }
}

/** Runs of blocks, as [start, end), that hold data; the others are noted in `holes`. */
function dataRuns(offset: number, extents: readonly Extent[], holes: Uint8Array): [number, number][] {
  holes.fill(1);
  for (const extent of extents) {
    if ((extent.status & HOLE) !== 0) continue;
    const first = Math.floor((extent.offset - offset) / UNIT_BYTES);
    holes.fill(0, first, Math.ceil((extent.offset + extent.length - offset) / UNIT_BYTES));
  }
  const runs: [number, number][] = [];
  for (let start = 0; start < holes.length; ) {
    let end = start + 1;
    while (end < holes.length && holes[end] === holes[start]) end++;
    if (holes[start] === 0) runs.push([start, end]);
    start = end;
  }
  return runs;
}
