/**
 * Requests of the worker's own clients: copies, repairs, peeks. Each piece of work has a connection without a socket, whose slots
 * and memory come from the same admission as everybody's, so that other connections are not starved by it.
 */
import type { Admission } from './admission.ts';
import { spanOf } from './block-math.ts';
import type { Connection, LocalClient } from './connection.ts';
import type { ConnectionTable } from './connection-table.ts';
import type { Engine } from './engine.ts';
import type { NodeMemory } from './node-io.ts';
import type { RequestMemory } from './request-memory.ts';
import { NO_SLOT, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

export interface LocalRequest {
  /** As in `Slots`. */
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  /** Room for one more block. */
  readonly withScratch: boolean;
}

export class LocalRequests {
  readonly slots: Slots;
  readonly engine: Engine;
  readonly connections: ConnectionTable;
  /** All memory of requests. */
  readonly bytes: Uint8Array;
  readonly #memory: RequestMemory;
  readonly #admission: Admission;

  constructor(parts: {
    slots: Slots;
    memory: RequestMemory;
    admission: Admission;
    engine: Engine;
    connections: ConnectionTable;
    nodeMemory: NodeMemory;
  }) {
    this.slots = parts.slots;
    this.engine = parts.engine;
    this.connections = parts.connections;
    this.bytes = parts.nodeMemory.bytes;
    this.#memory = parts.memory;
    this.#admission = parts.admission;
  }

  /** A connection for work on a volume, which is kept until `leave`. Null: there are too many. */
  enter(client: LocalClient, volume: Volume): Connection | null {
    const connection = this.connections.admitLocal(client);
    if (connection === null) return null;
    connection.volume = volume;
    volume.copies++;
    return connection;
  }

  /** No slot may belong to it any more. */
  leave(connection: Connection, volume: Volume): void {
    volume.copies--;
    this.connections.releaseLocal(connection);
  }

  /** A slot for a request that is then to be started, or NO_SLOT: the connection is served again when there is room. */
  take(connection: Connection, request: LocalRequest): number {
    const { type, flags, offset, length, withScratch } = request;
    const slot = this.#admission.take(connection, spanOf(offset, length), withScratch);
    if (slot === NO_SLOT) return NO_SLOT;
    this.slots.type[slot] = type;
    this.slots.flags[slot] = flags;
    this.slots.offset[slot] = offset;
    this.slots.length[slot] = length;
    return slot;
  }

  /** What the request is to write, from its beginning on. The volume's last block may be cut: the rest of it is zeroes. */
  fill(slot: number, content: Uint8Array): void {
    const at = this.slots.buffer[slot]!;
    const span = spanOf(this.slots.offset[slot]!, this.slots.length[slot]!);
    this.bytes.set(content, at);
    this.bytes.fill(0, at + content.length, at + span);
  }

  /** The next of its requests that has ended, or NO_SLOT. */
  nextEnded(connection: Connection): number {
    return connection.done.shift(this.slots);
  }

  /** Gives back what an ended request held. */
  give(slot: number, connection: Connection): void {
    this.#memory.give(slot, connection);
  }
}
