/**
 * The blocks of one batch of completions, read or written: their checksums are computed together, in one call of the
 * addon, before any of their requests goes on. Nothing is allocated after construction.
 */
import { ZERO_BLOCK_CRC } from '../store/checksum-file.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import type { NodeIo } from './node-io.ts';

export class ChecksumBatch {
  /** Entries of this batch. */
  count = 0;
  readonly slots: Int32Array;
  /** Index of each entry's first block. */
  readonly #firsts: Int32Array;
  readonly #addresses: Float64Array;
  readonly #values: Uint32Array;
  readonly #io: NodeIo;
  #blockCount = 0;

  /**
   * @param slotCount each slot is in a batch at most once
   * @param blockCount blocks of memory that slots share: each is in a batch at most once
   */
  constructor(io: NodeIo, slotCount: number, blockCount: number) {
    this.#io = io;
    this.slots = new Int32Array(slotCount);
    this.#firsts = new Int32Array(slotCount);
    this.#addresses = new Float64Array(blockCount);
    this.#values = new Uint32Array(blockCount);
  }

  /** @param at position in memory of the first of `count` whole blocks */
  add(slot: number, at: number, count: number): void {
    const entry = this.count++;
    this.slots[entry] = slot;
    this.#firsts[entry] = this.#blockCount;
    let address = this.#io.memory.address + at;
    for (let i = 0; i < count; i++) {
      this.#addresses[this.#blockCount++] = address;
      address += UNIT_BYTES;
    }
  }

  compute(): void {
    this.#io.checksumBlocks(this.#addresses, this.#blockCount, this.#values);
  }

  clear(): void {
    this.count = 0;
    this.#blockCount = 0;
  }

  /** Stores the checksums of an entry's blocks. */
  store(entry: number, checksums: Uint32Array, firstBlock: number, count: number): void {
    const values = this.#values;
    const from = this.#firsts[entry]!;
    for (let i = 0; i < count; i++) checksums[firstBlock + i] = values[from + i]! ^ ZERO_BLOCK_CRC;
  }

  /** The first of an entry's blocks that does not match its stored checksum, or -1. */
  mismatch(entry: number, checksums: Uint32Array, firstBlock: number, count: number): number {
    const values = this.#values;
    const from = this.#firsts[entry]!;
    for (let i = 0; i < count; i++) {
      if (((values[from + i]! ^ checksums[firstBlock + i]! ^ ZERO_BLOCK_CRC) | 0) !== 0)
        return firstBlock + i;
    }
    return -1;
  }
}
