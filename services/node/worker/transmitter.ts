/**
 * From finished requests to sent replies. At most one send is in flight per connection; what finishes meanwhile gathers
 * and goes out as one message: headers from the transmit block, payload straight from the requests' own blocks.
 *
 *   transmit block (16 KiB):  [struct msghdr][iovecs ...][reply headers ...]
 *                                               │ └─▶ payload in a request's block
 *                                               └──▶ headers, neighbours as one piece
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import {
  encodeDone,
  encodeError,
  encodeOffsetData,
  encodeSimpleReply,
  REPLY_EXTENDED,
  REPLY_SIMPLE,
} from '@blockwire/proto/nbd/reply.ts';
import { Stat } from '../data/stats.ts';
import { BLOCK_MASK, blockFrom, blockOf, PART_BYTES_MAX, withinBlock } from './block-math.ts';
import { CLOSING, type Connection } from './connection.ts';
import type { Engine } from './engine.ts';
import type { NodeIo } from './node-io.ts';
import type { RequestMemory } from './request-memory.ts';
import { NO_SLOT, type Slots } from './slots.ts';

/** Order of a connection's transmit block in the pool: 16 KiB. */
export const TX_ORDER = 2;
/** Replies in one message. Each needs two iovecs and at most HEADER_BYTES_MAX at worst. */
const REPLIES_MAX = 128;
const MSGHDR_BYTES = 64;
const IOVEC_BYTES = 16;
const HEADERS_AT = MSGHDR_BYTES + (2 * REPLIES_MAX + 1) * IOVEC_BYTES;
const HEADER_BYTES_MAX = (16 * 1024 - HEADERS_AT) / REPLIES_MAX;
// The longest: an extended header with the error fields of an offset.
if (HEADER_BYTES_MAX < 48) throw new Error('the transmit block is too small for its replies');
/** Where an extended header has the offset of its request. */
const EXTENDED_OFFSET_AT = 16;
const OFFSET_BYTES = 8;
const TWO_POW_32 = 0x1_0000_0000;

export interface TransmitterHost {
  fail(connection: Connection, reason: string): void;
  readonly nowMs: number;
}

export class Transmitter {
  readonly #slots: Slots;
  readonly #memory: RequestMemory;
  readonly #engine: Engine;
  readonly #io: NodeIo;
  readonly #host: TransmitterHost;
  readonly #stats: Float64Array;
  readonly #view: DataView;
  readonly #words: Uint32Array;
  readonly #address: number;
  // The message being built; one at a time.
  #iovecAt = 0;
  #headerAt = 0;
  #iovecCount = 0;
  #totalBytes = 0;
  #lastIsHeader = false;
  #firstAt = 0;

  constructor(parts: {
    slots: Slots;
    memory: RequestMemory;
    engine: Engine;
    io: NodeIo;
    host: TransmitterHost;
    stats: Float64Array;
  }) {
    this.#slots = parts.slots;
    this.#memory = parts.memory;
    this.#engine = parts.engine;
    this.#io = parts.io;
    this.#host = parts.host;
    this.#stats = parts.stats;
    this.#view = parts.io.memory.view;
    this.#words = parts.io.memory.words;
    this.#address = parts.io.memory.address;
  }

  /** Writes what all messages of the connection have in common; once, when its transmission phase begins. */
  prepare(connection: Connection): void {
    // struct msghdr: name, namelen, iov at byte 16, iovlen at 24, control, controllen, flags.
    const words = this.#words;
    const message = connection.txAt >> 2;
    const iovecs = this.#address + connection.txAt + MSGHDR_BYTES;
    words.fill(0, message, message + MSGHDR_BYTES / 4);
    words[message + 4] = iovecs >>> 0;
    words[message + 5] = (iovecs / TWO_POW_32) >>> 0;
  }

  /** Sends what has gathered, unless a send is under way. */
  flush(connection: Connection): void {
    if (connection.sending || connection.phase === CLOSING) return;
    if (connection.serialSlot !== NO_SLOT && this.#flushSerial(connection)) return;
    if (connection.done.isEmpty) return;
    this.#begin(connection);
    for (let count = 0; count < REPLIES_MAX; count++) {
      const slot = connection.done.shift(this.#slots);
      if (slot === NO_SLOT) break;
      this.#append(connection, slot);
      connection.sent.push(this.#slots, slot);
    }
    this.#send(connection);
  }

  /** Completion of the send: the slots' blocks are free. */
  sent(connection: Connection, result: number): void {
    connection.sending = false;
    const complete = result === connection.sendBytes;
    for (;;) {
      const slot = connection.sent.shift(this.#slots);
      if (slot === NO_SLOT) break;
      this.#memory.give(slot, connection);
    }
    if (connection.phase === CLOSING) return;
    if (!complete) this.#host.fail(connection, 'the client does not take its replies');
    else if (connection.serialSlot !== NO_SLOT && connection.serialReady) this.#nextPart(connection);
  }

  /** Sends `lengthBytes` of the transmit block's begin: handshake. */
  sendRaw(connection: Connection, lengthBytes: number): void {
    this.#note(connection, lengthBytes);
    this.#io.send(connection.fd, connection.txAt, lengthBytes, connection.index);
  }

  #append(connection: Connection, slot: number): void {
    const slots = this.#slots;
    const view = this.#view;
    const at = this.#headerAt;
    const mode = connection.replyMode;
    const error = slots.error[slot]!;
    const high = slots.cookieHigh[slot]!;
    const low = slots.cookieLow[slot]!;
    const type = slots.type[slot]!;
    // The encoders get 0 for the offset, which is written behind them: as an argument it might be boxed (block-math.ts).
    if (error !== nbd.NBD_OK) {
      this.#addHeader(encodeError(view, at, mode, error, high, low, 0));
      if (mode === REPLY_EXTENDED) this.#putOffset(at + EXTENDED_OFFSET_AT, slot);
      return;
    }
    const length = slots.length[slot]!;
    if (type === nbd.NBD_CMD_READ && length > 0) {
      if (mode === REPLY_SIMPLE) {
        this.#addHeader(encodeSimpleReply(view, at, 0, high, low));
      } else {
        const header = encodeOffsetData(view, at, mode, nbd.NBD_REPLY_FLAG_DONE, high, low, 0, 0, length);
        this.#putOffset(at + header - OFFSET_BYTES, slot);
        this.#addHeader(header);
      }
      this.#addPiece(slots.buffer[slot]! + (slots.offset[slot]! & BLOCK_MASK), length);
    } else if (type === nbd.NBD_CMD_BLOCK_STATUS && length > 0) {
      // The whole reply stands in the request's block (block-status.ts).
      this.#addPiece(slots.buffer[slot]!, slots.ioLength[slot]!);
      return;
    } else {
      this.#addHeader(encodeDone(view, at, mode, high, low, 0));
    }
    if (mode === REPLY_EXTENDED) this.#putOffset(at + EXTENDED_OFFSET_AT, slot);
  }

  /** The slot's offset as a field of 64 bits. */
  #putOffset(at: number, slot: number): void {
    const offset = this.#slots.offset[slot]!;
    this.#view.setUint32(at, offset / TWO_POW_32);
    this.#view.setUint32(at + 4, offset);
  }

  // A read of several blocks: when everything before it is answered, its parts are read and sent one after the other.
  // Simple replies allow nothing else: header and payload are one stretch of the stream.

  /** True while the connection belongs to its long read. */
  #flushSerial(connection: Connection): boolean {
    const slot = connection.serialSlot;
    if (!connection.serialStarted) {
      if (connection.inFlight > 1) return false;
      connection.serialStarted = true;
      connection.bulkOffset = this.#slots.offset[slot]!;
      connection.bulkRemaining = this.#slots.length[slot]!;
      this.#readPart(connection);
      return true;
    }
    if (connection.serialReady) this.#sendPart(connection);
    return true;
  }

  #partLength(connection: Connection): number {
    return Math.min(connection.bulkRemaining, PART_BYTES_MAX - withinBlock(connection.bulkOffset));
  }

  #readPart(connection: Connection): void {
    connection.serialReady = false;
    const offset = connection.bulkOffset;
    const end = blockFrom(offset + this.#partLength(connection));
    this.#engine.readPart(connection.serialSlot, blockOf(offset), end);
  }

  #sendPart(connection: Connection): void {
    const slots = this.#slots;
    const slot = connection.serialSlot;
    const error = slots.error[slot]!;
    const simple = connection.replyMode === REPLY_SIMPLE;
    if (error !== nbd.NBD_OK && simple && connection.serialHeaderSent) {
      // NBD_CMD_READ, simple replies: an error after the header can only be told by disconnecting.
      this.#host.fail(connection, 'a long read failed half way');
      return;
    }
    const high = slots.cookieHigh[slot]!;
    const low = slots.cookieLow[slot]!;
    const requestOffset = slots.offset[slot]!;
    const offset = connection.bulkOffset;
    const length = this.#partLength(connection);
    this.#begin(connection);
    if (error !== nbd.NBD_OK) {
      const mode = connection.replyMode;
      this.#addHeader(encodeError(this.#view, this.#headerAt, mode, error, high, low, requestOffset));
    } else {
      const last = length === connection.bulkRemaining ? nbd.NBD_REPLY_FLAG_DONE : 0;
      if (!simple) {
        const at = this.#headerAt;
        const mode = connection.replyMode;
        this.#addHeader(
          encodeOffsetData(this.#view, at, mode, last, high, low, requestOffset, offset, length),
        );
      } else if (!connection.serialHeaderSent) {
        this.#addHeader(encodeSimpleReply(this.#view, this.#headerAt, 0, high, low));
      }
      this.#addPiece(slots.buffer[slot]! + withinBlock(offset), length);
    }
    connection.serialHeaderSent = true;
    this.#send(connection);
  }

  #nextPart(connection: Connection): void {
    const slot = connection.serialSlot;
    const length = this.#partLength(connection);
    connection.bulkOffset += length;
    connection.bulkRemaining -= length;
    if (connection.bulkRemaining > 0 && this.#slots.error[slot] === nbd.NBD_OK) {
      this.#readPart(connection);
      return;
    }
    connection.serialSlot = NO_SLOT;
    connection.serialStarted = false;
    connection.serialHeaderSent = false;
    connection.serialReady = false;
    this.#memory.give(slot, connection);
  }

  // The message

  #begin(connection: Connection): void {
    this.#iovecAt = connection.txAt + MSGHDR_BYTES;
    this.#headerAt = connection.txAt + HEADERS_AT;
    this.#iovecCount = 0;
    this.#totalBytes = 0;
    this.#lastIsHeader = false;
  }

  /** The encoder wrote `lengthBytes` at `#headerAt`. */
  #addHeader(lengthBytes: number): void {
    if (this.#lastIsHeader) {
      const word = (this.#iovecAt - IOVEC_BYTES + 8) >> 2;
      this.#words[word] = this.#words[word]! + lengthBytes;
      this.#totalBytes += lengthBytes;
    } else {
      this.#addPiece(this.#headerAt, lengthBytes);
      this.#lastIsHeader = true;
    }
    this.#headerAt += lengthBytes;
  }

  #addPiece(at: number, lengthBytes: number): void {
    const words = this.#words;
    const word = this.#iovecAt >> 2;
    const address = this.#address + at;
    words[word] = address >>> 0;
    words[word + 1] = (address / TWO_POW_32) >>> 0;
    words[word + 2] = lengthBytes;
    words[word + 3] = 0;
    if (this.#iovecCount === 0) this.#firstAt = at;
    this.#iovecAt += IOVEC_BYTES;
    this.#iovecCount++;
    this.#totalBytes += lengthBytes;
    this.#lastIsHeader = false;
  }

  #send(connection: Connection): void {
    this.#note(connection, this.#totalBytes);
    if (this.#iovecCount === 1) {
      this.#io.send(connection.fd, this.#firstAt, this.#totalBytes, connection.index);
      return;
    }
    this.#words[(connection.txAt >> 2) + 6] = this.#iovecCount;
    this.#io.sendMessage(connection.fd, connection.txAt, connection.index);
  }

  #note(connection: Connection, lengthBytes: number): void {
    connection.sending = true;
    connection.sendBytes = lengthBytes;
    connection.sendStartedMs = this.#host.nowMs;
    this.#stats[Stat.sends] = this.#stats[Stat.sends]! + 1;
  }
}
