/**
 * Compares a replica with another one, chunk by chunk, beside a live writer. Pure; reading, repairing and waiting are the
 * host's.
 *
 * - A block that does not match its checksum here is copied from the source.
 * - Blocks that differ may only be a write that has come to one side so far. Looked at again, seconds later and with no write
 *   beside it here, a write has arrived or the content has changed; what is exactly as it was on both sides stands. Both
 *   checksums are good then, so nobody can tell which is right: it is counted and said, not repaired.
 */
import { crc32 } from 'node:zlib';
import type { ByteRange } from '../replication/fresh.ts';
import { REGION_SIZE_BYTES } from '../store/region-table.ts';
import { UNIT_BYTES } from '../worker/buffer-pool.ts';

export const SCRUB_CHUNK_BYTES = 256 * 1024;
/** How long after the look before. A write that takes longer than all of them ends its replica. */
const LOOK_AGAIN_MS = [1000, 5000, 10_000];
/** So many chunks are looked at again at most: beyond them there is no need to know more. */
const SUSPECTS_MAX = 1000;

export interface ScrubHost {
  /** False: it does not match its checksums, or cannot be read. @param isAlone no write is under way beside it */
  readLocal(chunk: ByteRange, into: Uint8Array, isAlone: boolean): Promise<boolean>;
  /** False: the source cannot read it. Rejects when the source is gone. */
  readSource(chunk: ByteRange, into: Uint8Array): Promise<boolean>;
  /** Copies what does not match its checksum. False: it cannot be done now. */
  repair(region: number): Promise<boolean>;
  /** Rejects when the scrub is to end. */
  pause(milliseconds: number): Promise<void>;
}

export interface ScrubOutcome {
  readonly scannedBytes: number;
  /** With a wrong checksum here, or other content than the source's. */
  readonly mismatched: ReadonlySet<number>;
  readonly repaired: ReadonlySet<number>;
  /** Of the mismatched: good checksums on both sides. */
  readonly differing: ReadonlySet<number>;
}

/** CRCs of a chunk's blocks on both sides. */
interface Look {
  readonly local: Uint32Array;
  readonly source: Uint32Array;
}

interface Suspect {
  readonly chunk: ByteRange;
  look: Look;
}

export class Scrub {
  readonly #sizeBytes: number;
  readonly #bytesPerSecond: number;
  readonly #host: ScrubHost;
  readonly #local = new Uint8Array(SCRUB_CHUNK_BYTES);
  readonly #source = new Uint8Array(SCRUB_CHUNK_BYTES);
  readonly #mismatched = new Set<number>();
  readonly #repaired = new Set<number>();
  readonly #differing = new Set<number>();
  #scannedBytes = 0;

  /** @param bytesPerSecond 0: no limit */
  constructor(options: {
    readonly sizeBytes: number;
    readonly bytesPerSecond: number;
    readonly host: ScrubHost;
  }) {
    this.#sizeBytes = options.sizeBytes;
    this.#bytesPerSecond = options.bytesPerSecond;
    this.#host = options.host;
  }

  /** So far. */
  get outcome(): ScrubOutcome {
    return {
      scannedBytes: this.#scannedBytes,
      ...{ mismatched: this.#mismatched, repaired: this.#repaired, differing: this.#differing },
    };
  }

  /** Looks at these regions. Rejects when the host does. */
  async run(regions: Iterable<number>): Promise<void> {
    let suspects: Suspect[] = [];
    for (const region of regions) {
      const end = Math.min(this.#sizeBytes, (region + 1) * REGION_SIZE_BYTES);
      for (let offset = region * REGION_SIZE_BYTES; offset < end; offset += SCRUB_CHUNK_BYTES) {
        const chunk = { offset, length: Math.min(SCRUB_CHUNK_BYTES, end - offset) };
        const look = await this.#look(chunk, false);
        this.#scannedBytes += chunk.length;
        if (look !== null && differs(look) && suspects.length < SUSPECTS_MAX) suspects.push({ chunk, look });
        if (this.#bytesPerSecond > 0) await this.#host.pause((chunk.length / this.#bytesPerSecond) * 1000);
      }
    }
    for (const milliseconds of LOOK_AGAIN_MS) {
      if (suspects.length === 0) return;
      await this.#host.pause(milliseconds);
      const standing: Suspect[] = [];
      for (const suspect of suspects) if (await this.#stands(suspect)) standing.push(suspect);
      suspects = standing;
    }
    for (const { chunk } of suspects) {
      this.#mismatched.add(regionOf(chunk));
      this.#differing.add(regionOf(chunk));
    }
  }

  /** Whether a block that differed is exactly as it was, on both sides. */
  async #stands(suspect: Suspect): Promise<boolean> {
    const before = suspect.look;
    const now = await this.#look(suspect.chunk, true);
    if (now === null) return false;
    // A block that has changed meanwhile is not held against anybody: what is left are those that have not.
    for (let block = 0; block < now.local.length; block++) {
      const isSame = now.local[block] === before.local[block] && now.source[block] === before.source[block];
      if (!isSame || before.local[block] === before.source[block]) now.source[block] = now.local[block]!;
    }
    suspect.look = now;
    return differs(now);
  }

  /** Null: one side could not be read. */
  async #look(chunk: ByteRange, isAlone: boolean): Promise<Look | null> {
    const local = this.#local.subarray(0, chunk.length);
    const source = this.#source.subarray(0, chunk.length);
    const [isLocalGood, isSourceGood] = await Promise.all([
      this.#host.readLocal(chunk, local, isAlone),
      this.#host.readSource(chunk, source),
    ]);
    if (!isLocalGood) {
      const region = regionOf(chunk);
      this.#mismatched.add(region);
      if (isSourceGood && !this.#repaired.has(region)) {
        if (await this.#host.repair(region)) this.#repaired.add(region);
      }
    }
    return isLocalGood && isSourceGood ? { local: blocksOf(local), source: blocksOf(source) } : null;
  }
}

function differs({ local, source }: Look): boolean {
  return local.some((crc, block) => crc !== source[block]);
}

function blocksOf(bytes: Uint8Array): Uint32Array {
  const crcs = new Uint32Array(Math.ceil(bytes.length / UNIT_BYTES));
  for (let block = 0; block < crcs.length; block++) {
    crcs[block] = crc32(bytes.subarray(block * UNIT_BYTES, (block + 1) * UNIT_BYTES));
  }
  return crcs;
}

function regionOf({ offset }: ByteRange): number {
  return Math.floor(offset / REGION_SIZE_BYTES);
}
