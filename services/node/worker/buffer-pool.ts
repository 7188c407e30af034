/**
 * A worker's bounded, page-aligned memory as a buddy allocator: blocks of 4 KiB << order, named by their position in
 * one region. Nothing is allocated after construction.
 */

export const UNIT_BYTES = 4096;
/** Largest block: 1 MiB. */
export const ORDER_MAX = 8;
export const BLOCK_BYTES_MAX = UNIT_BYTES << ORDER_MAX;
/** What `allocate` answers when no block of that order is free. */
export const NO_BLOCK = -1;

const NONE = -1;
const NOT_FREE = 0xff;

/** The order of the smallest block that holds `sizeBytes` (1 to BLOCK_BYTES_MAX). */
export function orderFor(sizeBytes: number): number {
  const units = (sizeBytes + UNIT_BYTES - 1) >>> 12;
  return units <= 1 ? 0 : 32 - Math.clz32(units - 1);
}

export class BufferPool {
  /** Bytes that are not handed out. */
  freeBytes: number;
  readonly sizeBytes: number;
  /** Position of the first block. */
  readonly #base: number;
  /** Per unit: the order of the free block that begins there, or NOT_FREE. */
  readonly #freeOrder: Uint8Array;
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #heads: Int32Array = new Int32Array(ORDER_MAX + 1).fill(NONE);

  /**
   * @param sizeBytes a multiple of BLOCK_BYTES_MAX
   * @param base where the pool begins in the worker's region; a multiple of UNIT_BYTES
   */
  constructor(sizeBytes: number, base = 0) {
    if (sizeBytes <= 0 || sizeBytes % BLOCK_BYTES_MAX !== 0 || sizeBytes > 2 ** 30) {
      throw new RangeError(`a pool is a multiple of ${BLOCK_BYTES_MAX} bytes, at most 1 GiB`);
    }
    this.sizeBytes = sizeBytes;
    this.#base = base;
    this.freeBytes = sizeBytes;
    const units = sizeBytes / UNIT_BYTES;
    this.#freeOrder = new Uint8Array(units).fill(NOT_FREE);
    this.#next = new Int32Array(units).fill(NONE);
    this.#previous = new Int32Array(units).fill(NONE);
    for (let unit = units - (1 << ORDER_MAX); unit >= 0; unit -= 1 << ORDER_MAX) this.#push(unit, ORDER_MAX);
  }

  /** The position of a free block of this order, or NO_BLOCK. */
  allocate(order: number): number {
    let from = order;
    while (from <= ORDER_MAX && this.#heads[from] === NONE) from++;
    if (from > ORDER_MAX) return NO_BLOCK;
    const unit = this.#heads[from]!;
    this.#remove(unit, from);
    while (from > order) {
      from--;
      this.#push(unit + (1 << from), from);
    }
    this.freeBytes -= UNIT_BYTES << order;
    return this.#base + unit * UNIT_BYTES;
  }

  /** Gives a block back, with the order it was allocated with. */
  free(position: number, order: number): void {
    let unit = (position - this.#base) / UNIT_BYTES;
    this.freeBytes += UNIT_BYTES << order;
    let merged = order;
    while (merged < ORDER_MAX) {
      const buddy = unit ^ (1 << merged);
      if (this.#freeOrder[buddy] !== merged) break;
      this.#remove(buddy, merged);
      unit = Math.min(unit, buddy);
      merged++;
    }
    this.#push(unit, merged);
  }

  #push(unit: number, order: number): void {
    const head = this.#heads[order]!;
    this.#freeOrder[unit] = order;
    this.#next[unit] = head;
    this.#previous[unit] = NONE;
    if (head !== NONE) this.#previous[head] = unit;
    this.#heads[order] = unit;
  }

  #remove(unit: number, order: number): void {
    const next = this.#next[unit]!;
    const previous = this.#previous[unit]!;
    if (previous === NONE) this.#heads[order] = next;
    else this.#next[previous] = next;
    if (next !== NONE) this.#previous[next] = previous;
    this.#freeOrder[unit] = NOT_FREE;
  }
}
