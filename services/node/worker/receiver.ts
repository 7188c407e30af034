/**
 * From received bytes to requests: parses as many headers as the receive block holds, checks them, brings payload into
 * aligned blocks, and starts them. Stops when the connection has taken its share of slots or memory.
 *
 *   receive block:  [header][4 KiB payload][header][header][header][first part of 512 KiB payload
 *                               │ copied                                │ copied, the rest is received
 *                               ▼                                       ▼ straight behind it
 *                          aligned block                           aligned block
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { REPLY_EXTENDED, REPLY_SIMPLE } from '@blockwire/proto/nbd/reply.ts';
import {
  extendedRequestLength,
  FIELD_INVALID,
  requestCookieHigh,
  requestCookieLow,
  requestFlags,
  requestLength,
  requestMagic,
  requestOffset,
  requestType,
} from '@blockwire/proto/nbd/request.ts';
import { Stat } from '../data/stats.ts';
import { encodeBlockStatus, STATUS_BLOCK_BYTES } from './block-status.ts';
import { type Connection, DRAINING, TRANSMISSION } from './connection.ts';
import { type Engine, PART_BYTES_MAX, spanOf, withinBlock } from './engine.ts';
import type { NodeIo } from './node-io.ts';
import { NO_SLOT, type Slots } from './slots.ts';

/** Requests of one connection between header and reply; more wait in the socket. */
const IN_FLIGHT_MAX = 256;
/** Blocks of one connection; one request may exceed it when it is alone. */
const BUFFER_BYTES_MAX = 8 * 1024 * 1024;
/**
 * A connection never holds more than an eighth of what is still free, of slots and of memory: however many clients do
 * not take their replies, something is left for those who do.
 */
const SHARE_SHIFT = 3;
/** A request of 64 KiB that begins anywhere in a block is small. */
const SMALL_SPAN_BYTES = 68 * 1024;
/**
 * The last of the memory, as shares of it (powers of two): the last quarter is only for the first small request of a
 * connection, so that no crowd of large, half-sent or unread ones starves the others.
 */
const RESERVE_SHIFT = 2;
const RESERVE_FIRST_SMALL_SHIFT = 5;
/** Payload that is not there yet is received straight into its block from this size on. */
const DIRECT_BYTES_MIN = 16 * 1024;
/** The size of receives between large writes: a header, and little payload to copy. */
const RECEIVE_BETWEEN_WRITES_BYTES = 4096;

const F = nbd;
/** Flags that each command knows ("Request types"). FUA is accepted on every one ("Command flags"). */
const ALLOWED_FLAGS = new Uint16Array(256).fill(0);
ALLOWED_FLAGS[F.NBD_CMD_READ] = F.NBD_CMD_FLAG_FUA | F.NBD_CMD_FLAG_DF;
ALLOWED_FLAGS[F.NBD_CMD_WRITE] = F.NBD_CMD_FLAG_FUA | F.NBD_CMD_FLAG_PAYLOAD_LEN;
ALLOWED_FLAGS[F.NBD_CMD_FLUSH] = F.NBD_CMD_FLAG_FUA;
ALLOWED_FLAGS[F.NBD_CMD_TRIM] = F.NBD_CMD_FLAG_FUA;
ALLOWED_FLAGS[F.NBD_CMD_CACHE] = F.NBD_CMD_FLAG_FUA;
ALLOWED_FLAGS[F.NBD_CMD_WRITE_ZEROES] =
  F.NBD_CMD_FLAG_FUA | F.NBD_CMD_FLAG_NO_HOLE | F.NBD_CMD_FLAG_FAST_ZERO;
ALLOWED_FLAGS[F.NBD_CMD_BLOCK_STATUS] = F.NBD_CMD_FLAG_FUA | F.NBD_CMD_FLAG_REQ_ONE;

export interface ReceiverHost {
  /** The slot has its answer without any disk operation. */
  finished(slot: number): void;
  /** The connection broke the protocol, or the stream ended. */
  fail(connection: Connection, reason: string): void;
  /** Monotonic milliseconds, as of the last tick. */
  readonly nowMs: number;
  /** It waits until slots or memory are free; small requests do not queue behind large ones. */
  waitForMemory(connection: Connection, small: boolean): void;
  /** Whether another connection has waited longer for memory of that kind. */
  mustQueue(connection: Connection, small: boolean): boolean;
}

export class Receiver {
  readonly #slots: Slots;
  readonly #engine: Engine;
  readonly #io: NodeIo;
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #host: ReceiverHost;
  readonly #stats: Float64Array;

  constructor(parts: {
    slots: Slots;
    engine: Engine;
    io: NodeIo;
    host: ReceiverHost;
    stats: Float64Array;
  }) {
    this.#slots = parts.slots;
    this.#engine = parts.engine;
    this.#io = parts.io;
    this.#view = parts.io.memory.view;
    this.#bytes = parts.io.memory.bytes;
    this.#host = parts.host;
    this.#stats = parts.stats;
  }

  /** Takes what can be taken and asks the socket for more. Call when bytes came, or room came back. */
  serve(connection: Connection): void {
    while (this.#step(connection)) {
      // Each step takes one request, or one part of one.
    }
  }

  /** The payload that `receivePayload` was asked for is there, or the stream ended in the middle of it. */
  payloadReceived(connection: Connection, result: number): void {
    const slot = connection.payloadSlot;
    const expected = connection.payloadBytes;
    connection.payloadSlot = NO_SLOT;
    if (result !== expected || connection.phase !== TRANSMISSION) {
      this.#abandon(slot);
      this.#host.fail(connection, 'the stream ended in the middle of a payload');
      return;
    }
    this.#engine.start(slot);
  }

  /** Ends what a closing connection had begun to receive. */
  abandon(connection: Connection): void {
    if (connection.bulkSlot === NO_SLOT) return;
    const slot = connection.bulkSlot;
    connection.bulkSlot = NO_SLOT;
    this.#engine.partDone(slot, nbd.NBD_ESHUTDOWN);
  }

  #abandon(slot: number): void {
    const parent = this.#slots.parent[slot]!;
    this.#engine.give(slot);
    if (parent !== NO_SLOT) this.#engine.partDone(parent, nbd.NBD_ESHUTDOWN);
  }

  /** False when nothing more can be done now. */
  #step(connection: Connection): boolean {
    if (connection.phase !== TRANSMISSION || connection.payloadSlot !== NO_SLOT || connection.receiving) {
      return false;
    }
    if (connection.drainBytes > 0 && !this.#drain(connection)) return false;
    if (connection.bulkSlot !== NO_SLOT) return this.#receivePart(connection);
    const extended = connection.replyMode === REPLY_EXTENDED;
    const headerBytes = extended ? nbd.EXTENDED_REQUEST_SIZE_BYTES : nbd.REQUEST_SIZE_BYTES;
    if (connection.rxTail - connection.rxHead < headerBytes) {
      this.receiveMore(connection);
      return false;
    }
    if (connection.serialSlot !== NO_SLOT) return false;
    return this.#parse(connection, connection.rxAt + connection.rxHead, extended, headerBytes);
  }

  #parse(connection: Connection, at: number, extended: boolean, headerBytes: number): boolean {
    const view = this.#view;
    if (requestMagic(view, at) !== (extended ? nbd.NBD_EXTENDED_REQUEST_MAGIC : nbd.NBD_REQUEST_MAGIC)) {
      this.#host.fail(connection, 'a request without its magic');
      return false;
    }
    const type = requestType(view, at);
    const flags = requestFlags(view, at);
    const offset = requestOffset(view, at);
    const length = extended ? extendedRequestLength(view, at) : requestLength(view, at);
    if (type === nbd.NBD_CMD_DISC) {
      connection.phase = DRAINING;
      return false;
    }
    const hasPayload = extended ? (flags & nbd.NBD_CMD_FLAG_PAYLOAD_LEN) !== 0 : type === nbd.NBD_CMD_WRITE;
    const error = this.#check(connection, type, flags, offset, length, hasPayload);
    if (error !== nbd.NBD_OK || length === 0 || !movesData(type)) {
      if (hasPayload && (length === FIELD_INVALID || (extended && length > nbd.NBD_PAYLOAD_SIZE_BYTES_MAX))) {
        // "Request message": more payload than was agreed on ends the connection.
        this.#host.fail(connection, 'a payload longer than the agreed maximum');
        return false;
      }
      return this.#answerOrStart(connection, at, headerBytes, type, flags, offset, length, error, hasPayload);
    }
    const span = spanOf(offset, length);
    if (type === nbd.NBD_CMD_READ) {
      return this.#beginRead(connection, at, headerBytes, flags, offset, length, span);
    }
    if (span > PART_BYTES_MAX) {
      const slot = this.#take(connection, at, headerBytes, 0, false, type, flags, offset, length);
      if (slot === NO_SLOT) return false;
      connection.bulkSlot = slot;
      connection.bulkOffset = offset;
      connection.bulkRemaining = length;
      // The receiving itself holds the whole.
      this.#slots.pending[slot] = 1;
      this.#countWrite(length);
      return true;
    }
    const missing = headerBytes + length - (connection.rxTail - connection.rxHead);
    if (missing > 0 && missing < DIRECT_BYTES_MIN && headerBytes + length <= connection.rxSizeBytes) {
      this.receiveMore(connection);
      return false;
    }
    const merged = withinBlock(offset) !== 0 || withinBlock(offset + length) !== 0;
    const slot = this.#take(connection, at, headerBytes, span, merged, type, flags, offset, length);
    if (slot === NO_SLOT) return false;
    this.#countWrite(length);
    return this.#fillPayload(connection, slot, offset, length);
  }

  /** The error of a request that must not be done, by the rules of "Request types" and "Error values". */
  #check(
    connection: Connection,
    type: number,
    flags: number,
    offset: number,
    length: number,
    hasPayload: boolean,
  ): number {
    const allowed = type < 256 ? ALLOWED_FLAGS[type]! : 0;
    const simple = connection.replyMode === REPLY_SIMPLE;
    if (type > nbd.NBD_CMD_BLOCK_STATUS) return nbd.NBD_EINVAL;
    if ((flags & ~allowed) !== 0 || hasPayload !== (type === nbd.NBD_CMD_WRITE)) return nbd.NBD_EINVAL;
    if ((flags & nbd.NBD_CMD_FLAG_DF) !== 0 && simple) return nbd.NBD_EINVAL;
    if ((flags & nbd.NBD_CMD_FLAG_PAYLOAD_LEN) !== 0 && connection.replyMode !== REPLY_EXTENDED) {
      return nbd.NBD_EINVAL;
    }
    if (type === nbd.NBD_CMD_FLUSH) return nbd.NBD_OK;
    if (type === nbd.NBD_CMD_BLOCK_STATUS && connection.contexts.length === 0) return nbd.NBD_EINVAL;
    if (movesData(type) && length > nbd.NBD_PAYLOAD_SIZE_BYTES_MAX) return nbd.NBD_EINVAL;
    const volume = connection.volume!;
    const writes =
      type === nbd.NBD_CMD_WRITE || type === nbd.NBD_CMD_WRITE_ZEROES || type === nbd.NBD_CMD_TRIM;
    if (writes && volume.readOnly) return nbd.NBD_EPERM;
    if (offset === FIELD_INVALID || length === FIELD_INVALID || length > volume.sizeBytes - offset) {
      return type === nbd.NBD_CMD_WRITE || type === nbd.NBD_CMD_WRITE_ZEROES
        ? nbd.NBD_ENOSPC
        : nbd.NBD_EINVAL;
    }
    if ((flags & nbd.NBD_CMD_FLAG_DF) !== 0 && spanOf(offset, length) > PART_BYTES_MAX) {
      return nbd.NBD_EOVERFLOW;
    }
    if (type === nbd.NBD_CMD_WRITE_ZEROES && !volume.canPunchHole) return nbd.NBD_EINVAL;
    if (type === nbd.NBD_CMD_TRIM && !volume.canPunchHole) return nbd.NBD_EINVAL;
    return nbd.NBD_OK;
  }

  /** Requests that fail, do nothing, or work without a block. */
  #answerOrStart(
    connection: Connection,
    at: number,
    headerBytes: number,
    type: number,
    flags: number,
    offset: number,
    length: number,
    error: number,
    hasPayload: boolean,
  ): boolean {
    const works = error === nbd.NBD_OK && length > 0;
    const answers = works && type === nbd.NBD_CMD_BLOCK_STATUS;
    const merges =
      works &&
      type === nbd.NBD_CMD_WRITE_ZEROES &&
      this.#engine.mergesZeroes(connection.volume!, offset, length);
    const span = answers ? STATUS_BLOCK_BYTES : 0;
    const slot = this.#take(connection, at, headerBytes, span, merges, type, flags, offset, length);
    if (slot === NO_SLOT) return false;
    if (hasPayload) connection.drainBytes = length;
    this.#slots.error[slot] = error;
    if (answers) this.#answerStatus(connection, slot);
    const idle = error !== nbd.NBD_OK || type === nbd.NBD_CMD_CACHE || type === nbd.NBD_CMD_BLOCK_STATUS;
    if (error !== nbd.NBD_OK) this.#count(Stat.errors, 1);
    if (type === nbd.NBD_CMD_FLUSH) this.#count(Stat.flushes, 1);
    else if (type === nbd.NBD_CMD_TRIM) this.#count(Stat.trims, 1);
    else if (type === nbd.NBD_CMD_WRITE_ZEROES) this.#count(Stat.writeZeroes, 1);
    else this.#count(Stat.others, 1);
    if (idle || (length === 0 && type !== nbd.NBD_CMD_FLUSH)) this.#host.finished(slot);
    else this.#engine.start(slot);
    return true;
  }

  #answerStatus(connection: Connection, slot: number): void {
    const slots = this.#slots;
    slots.ioLength[slot] = encodeBlockStatus(this.#io, slots.buffer[slot]!, {
      volume: connection.volume!,
      contexts: connection.contexts,
      mode: connection.replyMode,
      cookieHigh: slots.cookieHigh[slot]!,
      cookieLow: slots.cookieLow[slot]!,
      offset: slots.offset[slot]!,
      length: slots.length[slot]!,
      one: (slots.flags[slot]! & nbd.NBD_CMD_FLAG_REQ_ONE) !== 0,
    });
  }

  #beginRead(
    connection: Connection,
    at: number,
    headerBytes: number,
    flags: number,
    offset: number,
    length: number,
    span: number,
  ): boolean {
    const blockBytes = Math.min(span, PART_BYTES_MAX);
    const slot = this.#take(
      connection,
      at,
      headerBytes,
      blockBytes,
      false,
      nbd.NBD_CMD_READ,
      flags,
      offset,
      length,
    );
    if (slot === NO_SLOT) return false;
    this.#count(Stat.reads, 1);
    this.#count(Stat.readBytes, length);
    connection.rxLimitBytes = connection.rxSizeBytes;
    if (span > PART_BYTES_MAX) connection.serialSlot = slot;
    else this.#engine.start(slot);
    return true;
  }

  /** Brings the payload into the slot's block; starts the write if all of it is there. */
  #fillPayload(connection: Connection, slot: number, offset: number, length: number): boolean {
    const to = this.#slots.buffer[slot]! + withinBlock(offset);
    const present = Math.min(length, connection.rxTail - connection.rxHead);
    const from = connection.rxAt + connection.rxHead;
    this.#bytes.copyWithin(to, from, from + present);
    connection.rxHead += present;
    if (present === length) {
      connection.rxLimitBytes = connection.rxSizeBytes;
      this.#engine.start(slot);
      return true;
    }
    connection.payloadSlot = slot;
    connection.payloadBytes = length - present;
    connection.payloadStartedMs = this.#host.nowMs;
    connection.rxLimitBytes = RECEIVE_BETWEEN_WRITES_BYTES;
    this.#count(Stat.receives, 1);
    this.#io.receivePayload(connection.fd, to + present, length - present, connection.index);
    return false;
  }

  /** The next part of a write that is longer than one block. */
  #receivePart(connection: Connection): boolean {
    const parent = connection.bulkSlot;
    const slots = this.#slots;
    const offset = connection.bulkOffset;
    const length = Math.min(connection.bulkRemaining, PART_BYTES_MAX - withinBlock(offset));
    const merged = withinBlock(offset) !== 0 || withinBlock(offset + length) !== 0;
    const slot = this.#room(connection, spanOf(offset, length), merged);
    if (slot === NO_SLOT) return false;
    slots.type[slot] = nbd.NBD_CMD_WRITE;
    slots.flags[slot] = slots.flags[parent]!;
    slots.offset[slot] = offset;
    slots.length[slot] = length;
    slots.parent[slot] = parent;
    slots.pending[parent] = slots.pending[parent]! + 1;
    connection.bulkOffset = offset + length;
    connection.bulkRemaining -= length;
    if (connection.bulkRemaining === 0) {
      connection.bulkSlot = NO_SLOT;
      // The part that was just begun holds the whole now.
      slots.pending[parent] = slots.pending[parent]! - 1;
    }
    return this.#fillPayload(connection, slot, offset, length);
  }

  /** Consumes the header at `at` into a new slot, or NO_SLOT: then nothing is consumed. */
  #take(
    connection: Connection,
    at: number,
    headerBytes: number,
    spanBytes: number,
    withScratch: boolean,
    type: number,
    flags: number,
    offset: number,
    length: number,
  ): number {
    const slot = this.#room(connection, spanBytes, withScratch);
    if (slot === NO_SLOT) return NO_SLOT;
    const slots = this.#slots;
    slots.type[slot] = type;
    slots.flags[slot] = flags;
    slots.cookieHigh[slot] = requestCookieHigh(this.#view, at);
    slots.cookieLow[slot] = requestCookieLow(this.#view, at);
    slots.offset[slot] = offset;
    slots.length[slot] = length;
    connection.rxHead += headerBytes;
    return slot;
  }

  /** A slot within the connection's share, or NO_SLOT: the connection will be served again when there is room. */
  #room(connection: Connection, spanBytes: number, withScratch: boolean): number {
    const slotsMax = Math.min(IN_FLIGHT_MAX, this.#slots.freeCount >> SHARE_SHIFT);
    // One beside the whole that a part belongs to is always allowed.
    if (connection.inFlight > 1 && connection.inFlight >= slotsMax) return NO_SLOT;
    const { freeBytes, poolBytes } = this.#engine;
    const first = connection.bufferBytes === 0;
    const small = spanBytes <= SMALL_SPAN_BYTES;
    const bytesMax = Math.min(BUFFER_BYTES_MAX, freeBytes >> SHARE_SHIFT);
    if (!first && connection.bufferBytes + spanBytes > bytesMax) return NO_SLOT;
    const reserveBytes = poolBytes >> (first && small ? RESERVE_FIRST_SMALL_SHIFT : RESERVE_SHIFT);
    const fits = spanBytes === 0 || freeBytes - spanBytes >= reserveBytes;
    if (fits && !this.#host.mustQueue(connection, small)) {
      const slot = this.#engine.take(connection, spanBytes, withScratch);
      if (slot !== NO_SLOT) return slot;
    }
    this.#host.waitForMemory(connection, small);
    return NO_SLOT;
  }

  /** Throws payload away; false while more is to come. */
  #drain(connection: Connection): boolean {
    const present = Math.min(connection.drainBytes, connection.rxTail - connection.rxHead);
    connection.rxHead += present;
    connection.drainBytes -= present;
    if (connection.drainBytes === 0) return true;
    this.receiveMore(connection);
    return false;
  }

  /** Asks the socket for more bytes behind those that wait to be parsed. */
  receiveMore(connection: Connection): void {
    const { rxHead, rxTail, rxAt } = connection;
    if (rxHead === rxTail) {
      connection.rxHead = 0;
      connection.rxTail = 0;
    } else if (rxHead > 0) {
      // What is left is less than one request: little, or a small write's payload.
      this.#bytes.copyWithin(rxAt, rxAt + rxHead, rxAt + rxTail);
      connection.rxTail = rxTail - rxHead;
      connection.rxHead = 0;
    }
    const room = connection.rxSizeBytes - connection.rxTail;
    const limit = connection.rxTail === 0 ? Math.min(room, connection.rxLimitBytes) : room;
    connection.receiving = true;
    this.#count(Stat.receives, 1);
    this.#io.receive(connection.fd, rxAt + connection.rxTail, limit, connection.index);
  }

  #countWrite(length: number): void {
    this.#count(Stat.writes, 1);
    this.#count(Stat.writtenBytes, length);
  }

  #count(stat: number, amount: number): void {
    this.#stats[stat] = this.#stats[stat]! + amount;
  }
}

function movesData(type: number): boolean {
  return type === nbd.NBD_CMD_READ || type === nbd.NBD_CMD_WRITE;
}
