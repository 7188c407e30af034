/** Reads of the main thread (scrub): through the engine like a client's, so that checksums are verified and damage is told. */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import type { FromWorker, PeekOrder } from '../data/messages.ts';
import type { Admission } from './admission.ts';
import { spanOf } from './block-math.ts';
import type { Connection, LocalClient } from './connection.ts';
import type { ConnectionTable } from './connection-table.ts';
import { EIO } from './disk-errors.ts';
import type { Engine } from './engine.ts';
import type { NodeMemory } from './node-io.ts';
import type { RequestMemory } from './request-memory.ts';
import { NO_SLOT, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

interface Peek {
  readonly order: PeekOrder;
  readonly volume: Volume;
  begun: boolean;
}

export class Peeker implements LocalClient {
  readonly steps = null;
  readonly #slots: Slots;
  readonly #memory: RequestMemory;
  readonly #admission: Admission;
  readonly #engine: Engine;
  readonly #connections: ConnectionTable;
  readonly #bytes: Uint8Array;
  readonly #post: (message: FromWorker) => void;
  readonly #peeks = new Map<Connection, Peek>();

  constructor(parts: {
    slots: Slots;
    memory: RequestMemory;
    admission: Admission;
    engine: Engine;
    connections: ConnectionTable;
    nodeMemory: NodeMemory;
    post: (message: FromWorker) => void;
  }) {
    this.#slots = parts.slots;
    this.#memory = parts.memory;
    this.#admission = parts.admission;
    this.#engine = parts.engine;
    this.#connections = parts.connections;
    this.#bytes = parts.nodeMemory.bytes;
    this.#post = parts.post;
  }

  get idle(): boolean {
    return this.#peeks.size === 0;
  }

  /** Answered by `done`, with the bytes in the order's memory. */
  start(order: PeekOrder, volume: Volume): void {
    const connection = this.#connections.admitLocal(this);
    if (connection === null) {
      this.#post({ type: 'done', request: order.request, errno: EIO });
      return;
    }
    connection.volume = volume;
    volume.copies++;
    this.#peeks.set(connection, { order, volume, begun: false });
    this.serve(connection);
  }

  serve(connection: Connection): void {
    const peek = this.#peeks.get(connection)!;
    const slot = connection.done.shift(this.#slots);
    if (slot !== NO_SLOT) this.#finish(connection, peek, slot);
    else if (!peek.begun) this.#begin(connection, peek);
  }

  #begin(connection: Connection, peek: Peek): void {
    const { offset, length, isAlone } = peek.order;
    const slot = this.#admission.take(connection, spanOf(offset, length), false);
    if (slot === NO_SLOT) return;
    peek.begun = true;
    const slots = this.#slots;
    slots.type[slot] = nbd.NBD_CMD_READ;
    slots.flags[slot] = 0;
    slots.offset[slot] = offset;
    slots.length[slot] = length;
    if (isAlone) this.#engine.readAlone(slot);
    else this.#engine.start(slot);
  }

  #finish(connection: Connection, { order, volume }: Peek, slot: number): void {
    const { length, request } = order;
    const at = this.#slots.buffer[slot]!;
    const errno = this.#slots.error[slot]!;
    new Uint8Array(order.window).set(this.#bytes.subarray(at, at + length));
    this.#memory.give(slot, connection);
    this.#peeks.delete(connection);
    this.#connections.releaseLocal(connection);
    volume.copies--;
    this.#post({ type: 'done', request, errno });
  }
}
