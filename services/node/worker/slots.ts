/**
 * Requests in flight, as structure of arrays: a slot is an index, so that a request costs no allocation. A slot
 * lives from the parsing of its header until its reply has been sent.
 */

export const NO_SLOT = -1;

export class Slots {
  readonly count: number;
  freeCount: number;
  /** Index of the connection that sent it. */
  readonly connection: Int32Array;
  /** NBD_CMD_* and NBD_CMD_FLAG_*. Clamped: larger numbers, our own and unknown ones, must not look like READ. */
  readonly type: Uint8ClampedArray;
  readonly flags: Uint16Array;
  /** Where its work stands: engine.ts. */
  readonly step: Uint8Array;
  /** NBD error number; 0 while all is well. */
  readonly error: Uint16Array;
  /** The two halves of the client's cookie: as signed words, which are never boxed. */
  readonly cookieHigh: Int32Array;
  readonly cookieLow: Int32Array;
  /** What the client asked, in bytes. */
  readonly offset: Float64Array;
  readonly length: Float64Array;
  /** Position of its block in the pool (or NO_BLOCK) and the block's order. The block begins at the aligned offset. */
  readonly buffer: Int32Array;
  readonly bufferOrder: Uint8Array;
  /** Position of a second block, for read-modify-write, or NO_BLOCK. */
  readonly scratch: Int32Array;
  /** The disk operation in flight: first block in the file, bytes, position in memory. */
  readonly ioBlock: Float64Array;
  readonly ioLength: Int32Array;
  readonly ioAt: Int32Array;
  /** The whole blocks that the operation moves, whatever part of them is left: first block, bytes, position in memory. */
  readonly spanBlock: Float64Array;
  readonly spanLength: Int32Array;
  readonly spanAt: Int32Array;
  /** The blocks it may write, for write-order.ts; `orderIndex` is its place among the active, or -1. */
  readonly rangeStart: Float64Array;
  readonly rangeEnd: Float64Array;
  /** The block behind its whole ones, if it deallocates. */
  readonly wholeEnd: Float64Array;
  readonly orderIndex: Int32Array;
  /** A write too long for one block has a slot for each part: their parent, and there the count of parts at work. */
  readonly parent: Int32Array;
  readonly pending: Int32Array;
  /** Link of whatever list the slot is in. */
  readonly next: Int32Array;
  #freeHead: number;

  constructor(count: number) {
    this.count = count;
    this.freeCount = count;
    this.connection = new Int32Array(count);
    this.type = new Uint8ClampedArray(count);
    this.flags = new Uint16Array(count);
    this.step = new Uint8Array(count);
    this.error = new Uint16Array(count);
    this.cookieHigh = new Int32Array(count);
    this.cookieLow = new Int32Array(count);
    this.offset = new Float64Array(count);
    this.length = new Float64Array(count);
    this.buffer = new Int32Array(count).fill(-1);
    this.bufferOrder = new Uint8Array(count);
    this.scratch = new Int32Array(count).fill(-1);
    this.ioBlock = new Float64Array(count);
    this.ioLength = new Int32Array(count);
    this.ioAt = new Int32Array(count);
    this.spanBlock = new Float64Array(count);
    this.spanLength = new Int32Array(count);
    this.spanAt = new Int32Array(count);
    this.rangeStart = new Float64Array(count);
    this.rangeEnd = new Float64Array(count);
    this.wholeEnd = new Float64Array(count);
    this.orderIndex = new Int32Array(count).fill(-1);
    this.parent = new Int32Array(count).fill(NO_SLOT);
    this.pending = new Int32Array(count);
    this.next = new Int32Array(count);
    for (let i = 0; i < count; i++) this.next[i] = i + 1 < count ? i + 1 : NO_SLOT;
    this.#freeHead = 0;
  }

  /** A slot with error 0, no buffers and no parent, or NO_SLOT. */
  take(): number {
    const slot = this.#freeHead;
    if (slot === NO_SLOT) return NO_SLOT;
    this.#freeHead = this.next[slot]!;
    this.freeCount--;
    this.error[slot] = 0;
    this.step[slot] = 0;
    this.parent[slot] = NO_SLOT;
    this.pending[slot] = 0;
    this.next[slot] = NO_SLOT;
    return slot;
  }

  /** Its buffers must have been given back. */
  give(slot: number): void {
    this.next[slot] = this.#freeHead;
    this.#freeHead = slot;
    this.freeCount++;
  }
}

/** A first-in first-out list of slots, linked through `slots.next`. A slot is in at most one list. */
export class SlotQueue {
  head = NO_SLOT;
  tail = NO_SLOT;

  get isEmpty(): boolean {
    return this.head === NO_SLOT;
  }

  push(slots: Slots, slot: number): void {
    slots.next[slot] = NO_SLOT;
    if (this.tail === NO_SLOT) this.head = slot;
    else slots.next[this.tail] = slot;
    this.tail = slot;
  }

  /** The oldest, or NO_SLOT. */
  shift(slots: Slots): number {
    const slot = this.head;
    if (slot === NO_SLOT) return NO_SLOT;
    this.head = slots.next[slot]!;
    if (this.head === NO_SLOT) this.tail = NO_SLOT;
    return slot;
  }

  clear(): void {
    this.head = NO_SLOT;
    this.tail = NO_SLOT;
  }
}
