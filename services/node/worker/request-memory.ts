/** Slots and their blocks, taken together for a request and given back. Whether it may have them: admission.ts. */
import { type BufferPool, NO_BLOCK, orderFor, UNIT_BYTES } from './buffer-pool.ts';
import type { Connection } from './connection.ts';
import { NO_SLOT, type Slots } from './slots.ts';

export class RequestMemory {
  readonly #slots: Slots;
  readonly #pool: BufferPool;

  constructor(slots: Slots, pool: BufferPool) {
    this.#slots = slots;
    this.#pool = pool;
  }

  /** Memory for requests that nobody holds. */
  get freeBytes(): number {
    return this.#pool.freeBytes;
  }

  /** Memory for requests in all. */
  get sizeBytes(): number {
    return this.#pool.sizeBytes;
  }

  get freeSlots(): number {
    return this.#slots.freeCount;
  }

  /**
   * Takes a slot for `connection`, with a block for `spanBytes` (0: none) and the scratch block of a write of parts of
   * blocks. NO_SLOT when there is not enough of something: nothing was taken then.
   */
  take(connection: Connection, spanBytes: number, withScratch: boolean): number {
    const slots = this.#slots;
    if (slots.freeCount === 0) return NO_SLOT;
    let block = NO_BLOCK;
    let order = 0;
    if (spanBytes > 0) {
      order = orderFor(spanBytes);
      block = this.#pool.allocate(order);
      if (block === NO_BLOCK) return NO_SLOT;
    }
    let scratch = NO_BLOCK;
    if (withScratch) {
      scratch = this.#pool.allocate(0);
      if (scratch === NO_BLOCK) {
        if (block !== NO_BLOCK) this.#pool.free(block, order);
        return NO_SLOT;
      }
    }
    if (block !== NO_BLOCK) connection.bufferBytes += UNIT_BYTES << order;
    const slot = slots.take();
    slots.scratch[slot] = scratch;
    slots.buffer[slot] = block;
    slots.bufferOrder[slot] = order;
    slots.connection[slot] = connection.index;
    connection.inFlight++;
    return slot;
  }

  /** Gives slot and blocks back. */
  give(slot: number, connection: Connection): void {
    this.freeBlocks(slot, connection);
    connection.inFlight--;
    this.#slots.give(slot);
  }

  /** Gives the blocks back, before the slot. */
  freeBlocks(slot: number, connection: Connection): void {
    const slots = this.#slots;
    const block = slots.buffer[slot]!;
    if (block !== NO_BLOCK) {
      const order = slots.bufferOrder[slot]!;
      this.#pool.free(block, order);
      connection.bufferBytes -= UNIT_BYTES << order;
      slots.buffer[slot] = NO_BLOCK;
    }
    if (slots.scratch[slot] !== NO_BLOCK) {
      this.#pool.free(slots.scratch[slot]!, 0);
      slots.scratch[slot] = NO_BLOCK;
    }
  }
}
