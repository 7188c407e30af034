/**
 * The connections of a worker: their indexes and their own blocks of memory, from a pool that requests cannot drain; and
 * which of them something happened to since the last batch.
 */
import { BLOCK_BYTES_MAX, BufferPool, NO_BLOCK, UNIT_BYTES } from './buffer-pool.ts';
import { CLOSING, Connection, LOCAL, type LocalClient } from './connection.ts';
import type { NodeMemory } from './node-io.ts';
import { TX_ORDER } from './transmitter.ts';

/** Receive blocks: one that holds the longest option, one for requests. */
const RX_ORDER_HANDSHAKE = 2;
const RX_ORDER = 5;
/** Connections that may have a large receive block; the others do with the one of their handshake. */
const LARGE_RX_COUNT = 64;
/** Copies and scrubs at once. */
const LOCALS_MAX = 32;
/** What a connection needs from its first byte on. */
const CONNECTION_BYTES_MIN = (UNIT_BYTES << RX_ORDER_HANDSHAKE) + (UNIT_BYTES << TX_ORDER);

/** Memory for the connections' own blocks, so many that each of `connectionsMax` can be let in at any time. */
export function connectionPoolBytes(connectionsMax: number): number {
  const bytes = connectionsMax * CONNECTION_BYTES_MIN + LARGE_RX_COUNT * (UNIT_BYTES << RX_ORDER);
  return Math.ceil(bytes / BLOCK_BYTES_MAX) * BLOCK_BYTES_MAX;
}

export class ConnectionTable {
  count = 0;
  /** One more than the highest index in use. */
  #end = 0;
  readonly #pool: BufferPool;
  readonly #bytes: Uint8Array;
  readonly #connectionsMax: number;
  readonly #connections: (Connection | null)[];
  readonly #freeIndexes: number[] = [];
  readonly #freeLocals: number[] = [];
  readonly #touched: Int32Array;
  #touchedCount = 0;

  /** @param base where the pool of the connections' blocks begins in the worker's memory */
  constructor(connectionsMax: number, memory: NodeMemory, base: number) {
    this.#pool = new BufferPool(connectionPoolBytes(connectionsMax), base);
    this.#bytes = memory.bytes;
    this.#connectionsMax = connectionsMax;
    this.#connections = new Array<Connection | null>(connectionsMax + LOCALS_MAX).fill(null);
    for (let i = connectionsMax - 1; i >= 0; i--) this.#freeIndexes.push(i);
    for (let i = LOCALS_MAX - 1; i >= 0; i--) this.#freeLocals.push(connectionsMax + i);
    this.#touched = new Int32Array(connectionsMax + LOCALS_MAX);
  }

  /** For loops over all: indexes from 0 to before this one may be taken. */
  get end(): number {
    return this.#end;
  }

  get isFull(): boolean {
    return this.#freeIndexes.length === 0;
  }

  /** The connection of an operation under way. */
  get(index: number): Connection {
    return this.#connections[index]!;
  }

  find(index: number): Connection | null {
    return this.#connections[index]!;
  }

  /** A connection with its blocks, or null: there is no memory or index left. */
  admit(fd: number, nowMs: number): Connection | null {
    const tx = this.#pool.allocate(TX_ORDER);
    const rx = tx === NO_BLOCK ? NO_BLOCK : this.#pool.allocate(RX_ORDER_HANDSHAKE);
    const index = rx === NO_BLOCK ? undefined : this.#freeIndexes.pop();
    if (index === undefined) {
      if (rx !== NO_BLOCK) this.#pool.free(rx, RX_ORDER_HANDSHAKE);
      if (tx !== NO_BLOCK) this.#pool.free(tx, TX_ORDER);
      return null;
    }
    const connection = new Connection(index, fd, nowMs);
    connection.txAt = tx;
    setReceiveBlock(connection, rx, RX_ORDER_HANDSHAKE);
    this.#connections[index] = connection;
    this.#end = Math.max(this.#end, index + 1);
    this.count++;
    return connection;
  }

  /** Gives a large receive block, if one can be spared: a small one serves too, only in smaller batches. */
  enlarge(connection: Connection): void {
    // Those still to be let in come first.
    const owed = (this.#connectionsMax - this.count) * CONNECTION_BYTES_MIN;
    const spare = this.#pool.freeBytes - owed;
    const block = spare >= UNIT_BYTES << RX_ORDER ? this.#pool.allocate(RX_ORDER) : NO_BLOCK;
    if (block === NO_BLOCK) return;
    const { rxAt, rxOrder, rxHead, rxTail } = connection;
    this.#bytes.copyWithin(block, rxAt + rxHead, rxAt + rxTail);
    this.#pool.free(rxAt, rxOrder);
    setReceiveBlock(connection, block, RX_ORDER);
    connection.rxTail = rxTail - rxHead;
    connection.rxHead = 0;
  }

  /** Gives blocks and index back. No operation may name them. */
  release(connection: Connection): void {
    const { index } = connection;
    this.#pool.free(connection.rxAt, connection.rxOrder);
    this.#pool.free(connection.txAt, TX_ORDER);
    this.#connections[index] = null;
    this.#freeIndexes.push(index);
    this.count--;
    while (this.#end > 0 && this.#connections[this.#end - 1] === null) this.#end--;
    this.#untouch(connection);
  }

  /** One without socket and blocks, that slots may belong to; null: there are too many. Not in loops over all. */
  admitLocal(local: LocalClient): Connection | null {
    const index = this.#freeLocals.pop();
    if (index === undefined) return null;
    const connection = new Connection(index, -1, 0);
    connection.phase = LOCAL;
    connection.local = local;
    this.#connections[index] = connection;
    return connection;
  }

  /** No slot may belong to it. */
  releaseLocal(connection: Connection): void {
    // Whoever still has it in a queue passes it over.
    connection.phase = CLOSING;
    this.#connections[connection.index] = null;
    this.#freeLocals.push(connection.index);
    this.#untouch(connection);
  }

  #untouch(connection: Connection): void {
    if (!connection.dirty) return;
    connection.dirty = false;
    const at = this.#touched.indexOf(connection.index);
    this.#touched[at] = this.#touched[--this.#touchedCount]!;
  }

  /** Something happened to it: it is served before the next batch. */
  touch(connection: Connection): void {
    if (connection.dirty) return;
    connection.dirty = true;
    this.#touched[this.#touchedCount++] = connection.index;
  }

  /** One that something happened to, or null. */
  takeTouched(): Connection | null {
    if (this.#touchedCount === 0) return null;
    const connection = this.#connections[this.#touched[--this.#touchedCount]!]!;
    connection.dirty = false;
    return connection;
  }
}

function setReceiveBlock(connection: Connection, at: number, order: number): void {
  connection.rxAt = at;
  connection.rxOrder = order;
  connection.rxSizeBytes = UNIT_BYTES << order;
  connection.rxLimitBytes = connection.rxSizeBytes;
}
