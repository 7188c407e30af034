/** Reads of the main thread (scrub): through the engine like a client's, so that checksums are verified and damage is told. */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import type { FromWorker, PeekOrder } from '../data/messages.ts';
import type { Connection, LocalClient } from './connection.ts';
import { EIO } from './disk-errors.ts';
import type { Engine } from './engine.ts';
import type { LocalRequests } from './local-requests.ts';
import { NO_SLOT, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

interface Peek {
  readonly order: PeekOrder;
  readonly volume: Volume;
  begun: boolean;
}

export class Peeker implements LocalClient {
  readonly steps = null;
  readonly #local: LocalRequests;
  readonly #slots: Slots;
  readonly #engine: Engine;
  readonly #bytes: Uint8Array;
  readonly #post: (message: FromWorker) => void;
  readonly #peeks = new Map<Connection, Peek>();

  constructor(parts: {
    local: LocalRequests;
    post: (message: FromWorker) => void;
  }) {
    this.#local = parts.local;
    this.#slots = parts.local.slots;
    this.#engine = parts.local.engine;
    this.#bytes = parts.local.bytes;
    this.#post = parts.post;
  }

  get idle(): boolean {
    return this.#peeks.size === 0;
  }

  /** Answered by `done`, with the bytes in the order's memory. */
  start(order: PeekOrder, volume: Volume): void {
    const connection = this.#local.enter(this, volume);
    if (connection === null) {
      this.#post({ type: 'done', request: order.request, errno: EIO });
      return;
    }
    this.#peeks.set(connection, { order, volume, begun: false });
    this.serve(connection);
  }

  serve(connection: Connection): void {
    const peek = this.#peeks.get(connection)!;
    const slot = this.#local.nextEnded(connection);
    if (slot !== NO_SLOT) this.#finish(connection, peek, slot);
    else if (!peek.begun) this.#begin(connection, peek);
  }

  #begin(connection: Connection, peek: Peek): void {
    const { offset, length, isAlone } = peek.order;
    const request = { type: nbd.NBD_CMD_READ, flags: 0, offset, length, withScratch: false };
    const slot = this.#local.take(connection, request);
    if (slot === NO_SLOT) return;
    peek.begun = true;
    if (isAlone) this.#engine.readAlone(slot);
    else this.#engine.start(slot);
  }

  #finish(connection: Connection, { order, volume }: Peek, slot: number): void {
    const { length, request } = order;
    const at = this.#slots.buffer[slot]!;
    const errno = this.#slots.error[slot]!;
    new Uint8Array(order.window).set(this.#bytes.subarray(at, at + length));
    this.#local.give(slot, connection);
    this.#peeks.delete(connection);
    this.#local.leave(connection, volume);
    this.#post({ type: 'done', request, errno });
  }
}
