/**
 * Who may have slots and memory, and who waits for them. However many clients send without reading, or ask for a lot,
 * something is left for the others, and those that wait are served in the order of their arrival.
 */
import { Stat } from '../data/stats.ts';
import { CLOSING, type Connection } from './connection.ts';
import type { RequestMemory } from './request-memory.ts';
import { NO_SLOT } from './slots.ts';

/** Requests of one connection between header and reply; more wait in the socket. */
const IN_FLIGHT_MAX = 256;
/** Blocks of one connection; one request may exceed it when it is alone. */
const BUFFER_BYTES_MAX = 8 * 1024 * 1024;
/** A connection never holds more than an eighth of what is still free, of slots and of memory. */
const SHARE_SHIFT = 3;
/** A request of 64 KiB that begins anywhere in a block is small. */
const SMALL_SPAN_BYTES = 68 * 1024;
/**
 * The last of the memory, as shares of it (powers of two): the last quarter is only for the first small request of a
 * connection, so that no crowd of large, half-sent or unread ones starves the others.
 */
const RESERVE_SHIFT = 2;
const RESERVE_FIRST_SMALL_SHIFT = 5;

export class Admission {
  readonly #memory: RequestMemory;
  readonly #stats: Float64Array;
  /** Small requests do not queue behind large ones. */
  readonly #waitingSmall: Connection[] = [];
  readonly #waitingLarge: Connection[] = [];
  /** Whoever is being served from a queue: it need not queue again. */
  #turn: Connection | null = null;

  constructor(memory: RequestMemory, stats: Float64Array) {
    this.#memory = memory;
    this.#stats = stats;
  }

  get someoneWaits(): boolean {
    return this.#waitingSmall.length + this.#waitingLarge.length > 0;
  }

  /** A slot within the connection's share, or NO_SLOT: the connection will be served again when there is room. */
  take(connection: Connection, spanBytes: number, withScratch: boolean): number {
    const memory = this.#memory;
    const slotsMax = Math.min(IN_FLIGHT_MAX, memory.freeSlots >> SHARE_SHIFT);
    // One beside the whole that a part belongs to is always allowed.
    if (connection.inFlight > 1 && connection.inFlight >= slotsMax) return NO_SLOT;
    const { freeBytes, sizeBytes } = memory;
    const first = connection.bufferBytes === 0;
    const small = spanBytes <= SMALL_SPAN_BYTES;
    const bytesMax = Math.min(BUFFER_BYTES_MAX, freeBytes >> SHARE_SHIFT);
    if (!first && connection.bufferBytes + spanBytes > bytesMax) return NO_SLOT;
    const queue = small ? this.#waitingSmall : this.#waitingLarge;
    const reserveBytes = sizeBytes >> (first && small ? RESERVE_FIRST_SMALL_SHIFT : RESERVE_SHIFT);
    const fits = spanBytes === 0 || freeBytes - spanBytes >= reserveBytes;
    if (fits && (queue.length === 0 || this.#turn === connection)) {
      const slot = memory.take(connection, spanBytes, withScratch);
      if (slot !== NO_SLOT) return slot;
    }
    if (!connection.waitingForMemory) {
      connection.waitingForMemory = true;
      queue.push(connection);
      this.#stats[Stat.memoryWaits] = this.#stats[Stat.memoryWaits]! + 1;
    }
    return NO_SLOT;
  }

  /** Serves those that wait, first come first; stops at the first for whom there is still not enough. */
  serveWaiting(serve: (connection: Connection) => void): void {
    if (this.#waitingSmall.length > 0) this.#serveQueue(this.#waitingSmall, serve);
    if (this.#waitingLarge.length > 0) this.#serveQueue(this.#waitingLarge, serve);
  }

  #serveQueue(queue: Connection[], serve: (connection: Connection) => void): void {
    for (;;) {
      const connection = queue.shift();
      if (connection === undefined) return;
      connection.waitingForMemory = false;
      if (connection.phase === CLOSING) continue;
      this.#turn = connection;
      serve(connection);
      this.#turn = null;
      if (connection.waitingForMemory && queue.at(-1) === connection) {
        // Still not enough: it stays the first.
        queue.pop();
        queue.unshift(connection);
        return;
      }
    }
  }
}
