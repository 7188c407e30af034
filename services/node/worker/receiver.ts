/**
 * From received bytes to requests: parses as many headers as the receive block holds, checks them (rules.ts), brings
 * payload into aligned blocks, and starts them. Stops when the connection has taken its share (admission.ts).
 *
 *   receive block:  [header][4 KiB payload][header][header][header][first part of 512 KiB payload
 *                               │ copied                                │ copied, the rest is received
 *                               ▼                                       ▼ straight behind it
 *                          aligned block                           aligned block
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import type { Admission } from './admission.ts';
import { PART_BYTES_MAX, spanOf, withinBlock } from './block-math.ts';
import { encodeBlockStatus, STATUS_BLOCK_BYTES } from './block-status.ts';
import { type Connection, DRAINING, TRANSMISSION } from './connection.ts';
import type { Engine } from './engine.ts';
import type { Gathering } from './gathering.ts';
import { Incoming } from './incoming.ts';
import type { NodeIo } from './node-io.ts';
import { mergesZeroes } from './partial-blocks.ts';
import type { ReadBudget } from './read-budget.ts';
import type { RequestMemory } from './request-memory.ts';
import { hasExcessivePayload, refusalOf } from './rules.ts';
import { NO_SLOT, type Slots } from './slots.ts';

/** Payload that is not there yet is received straight into its block from this size on. */
const DIRECT_BYTES_MIN = 16 * 1024;
/** The size of receives between large writes: a header, and little payload to copy. */
const RECEIVE_BETWEEN_WRITES_BYTES = 4096;

export interface ReceiverHost {
  /** The slot has its answer without any disk operation. */
  finished(slot: number): void;
  /** The connection broke the protocol, or the stream ended. */
  fail(connection: Connection, reason: string): void;
  /** A MARK or CHECKPOINT of the volume's writer, in order with its writes on this connection. */
  marked(connection: Connection, request: Incoming): void;
  /** Monotonic milliseconds, as of the last tick. */
  readonly nowMs: number;
}

export class Receiver {
  readonly #slots: Slots;
  readonly #memory: RequestMemory;
  readonly #admission: Admission;
  readonly #engine: Engine;
  readonly #gathering: Gathering;
  readonly #budget: ReadBudget;
  readonly #io: NodeIo;
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #host: ReceiverHost;
  readonly #stats: Float64Array;
  readonly #incoming = new Incoming();

  constructor(parts: {
    slots: Slots;
    memory: RequestMemory;
    admission: Admission;
    engine: Engine;
    gathering: Gathering;
    budget: ReadBudget;
    io: NodeIo;
    host: ReceiverHost;
    stats: Float64Array;
  }) {
    this.#slots = parts.slots;
    this.#memory = parts.memory;
    this.#admission = parts.admission;
    this.#engine = parts.engine;
    this.#gathering = parts.gathering;
    this.#budget = parts.budget;
    this.#io = parts.io;
    this.#view = parts.io.memory.view;
    this.#bytes = parts.io.memory.bytes;
    this.#host = parts.host;
    this.#stats = parts.stats;
  }

  /** Once, when the connection's transmission phase begins. */
  prepare(connection: Connection): void {
    this.#gathering.begin(connection.index);
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
      const parent = this.#slots.parent[slot]!;
      this.#memory.give(slot, connection);
      if (parent !== NO_SLOT) this.#engine.partDone(parent, nbd.NBD_ESHUTDOWN);
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

  /** False when nothing more can be done now. */
  #step(connection: Connection): boolean {
    if (connection.phase !== TRANSMISSION || connection.payloadSlot !== NO_SLOT || connection.receiving) {
      return false;
    }
    if (connection.drainBytes > 0 && !this.#drain(connection)) return false;
    if (connection.bulkSlot !== NO_SLOT) return this.#receivePart(connection);
    if (connection.rxTail - connection.rxHead < Incoming.headerBytes(connection.replyMode)) {
      if (this.#gathering.mayReceive(connection.index)) this.receiveMore(connection);
      return false;
    }
    if (connection.serialSlot !== NO_SLOT) return false;
    const at = connection.rxAt + connection.rxHead;
    if (!this.#incoming.read(this.#view, at, connection.replyMode)) {
      this.#host.fail(connection, 'a request without its magic');
      return false;
    }
    return this.#dispatch(connection, this.#incoming);
  }

  #dispatch(connection: Connection, request: Incoming): boolean {
    if (request.type === nbd.NBD_CMD_DISC) {
      connection.phase = DRAINING;
      return false;
    }
    const error = refusalOf(request, connection);
    if (error === nbd.NBD_OK && request.length > 0) {
      if (request.type === nbd.NBD_CMD_READ) return this.#beginRead(connection, request);
      if (request.type === nbd.NBD_CMD_WRITE) return this.#beginWrite(connection, request);
    } else if (hasExcessivePayload(request)) {
      this.#host.fail(connection, 'a payload longer than the agreed maximum');
      return false;
    }
    return this.#answerOrStart(connection, request, error);
  }

  #beginRead(connection: Connection, request: Incoming): boolean {
    const span = request.spanBytes;
    if (!this.#budget.allows(connection.index)) return false;
    const slot = this.#take(connection, request, Math.min(span, PART_BYTES_MAX), false);
    if (slot === NO_SLOT) return false;
    this.#budget.take(span);
    this.#count(Stat.reads, 1);
    this.#count(Stat.readBytes, request.length);
    connection.rxLimitBytes = connection.rxSizeBytes;
    if (span > PART_BYTES_MAX) connection.serialSlot = slot;
    else this.#engine.start(slot);
    return true;
  }

  #beginWrite(connection: Connection, request: Incoming): boolean {
    const { length, headerBytes } = request;
    const span = request.spanBytes;
    if (span > PART_BYTES_MAX) {
      const slot = this.#take(connection, request, 0, false);
      if (slot === NO_SLOT) return false;
      connection.bulkSlot = slot;
      connection.bulkOffset = request.offset;
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
    const slot = this.#take(connection, request, span, request.isPartial);
    if (slot === NO_SLOT) return false;
    this.#countWrite(length);
    return this.#fillPayload(connection, slot, request.head, length);
  }

  /** The next part of a write that is longer than one block. */
  #receivePart(connection: Connection): boolean {
    const parent = connection.bulkSlot;
    const slots = this.#slots;
    const offset = connection.bulkOffset;
    const length = Math.min(connection.bulkRemaining, PART_BYTES_MAX - withinBlock(offset));
    const merged = withinBlock(offset) !== 0 || withinBlock(offset + length) !== 0;
    const slot = this.#admission.take(connection, spanOf(offset, length), merged);
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
    return this.#fillPayload(connection, slot, withinBlock(offset), length);
  }

  /** Brings the payload into the slot's block, `head` bytes from its begin; starts the write if all of it is there. */
  #fillPayload(connection: Connection, slot: number, head: number, length: number): boolean {
    const to = this.#slots.buffer[slot]! + head;
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

  /** Requests that fail, do nothing, or work without a block of payload. */
  #answerOrStart(connection: Connection, request: Incoming, error: number): boolean {
    const { type, length } = request;
    const works = error === nbd.NBD_OK && length > 0;
    const answers = works && type === nbd.NBD_CMD_BLOCK_STATUS;
    const merges = works && type === nbd.NBD_CMD_WRITE_ZEROES && mergesZeroes(connection.volume!, request);
    const slot = this.#take(connection, request, answers ? STATUS_BLOCK_BYTES : 0, merges);
    if (slot === NO_SLOT) return false;
    if (request.hasPayload) connection.drainBytes = length;
    this.#slots.error[slot] = error;
    if (answers) this.#answerStatus(connection, slot);
    if (error !== nbd.NBD_OK) this.#count(Stat.errors, 1);
    if (type === nbd.NBD_CMD_FLUSH) this.#count(Stat.flushes, 1);
    else if (type === nbd.NBD_CMD_TRIM) this.#count(Stat.trims, 1);
    else if (type === nbd.NBD_CMD_WRITE_ZEROES) this.#count(Stat.writeZeroes, 1);
    else this.#count(Stat.others, 1);
    if (error === nbd.NBD_OK && type > nbd.NBD_CMD_BLOCK_STATUS) this.#host.marked(connection, request);
    const idle = error !== nbd.NBD_OK || type === nbd.NBD_CMD_CACHE || type >= nbd.NBD_CMD_BLOCK_STATUS;
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

  /** Consumes the header into a new slot, or NO_SLOT: then nothing is consumed. */
  #take(connection: Connection, request: Incoming, spanBytes: number, withScratch: boolean): number {
    const slot = this.#admission.take(connection, spanBytes, withScratch);
    if (slot === NO_SLOT) return NO_SLOT;
    request.copyTo(this.#slots, slot);
    connection.rxHead += request.headerBytes;
    this.#gathering.count(connection.index);
    return slot;
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

  #countWrite(length: number): void {
    this.#count(Stat.writes, 1);
    this.#count(Stat.writtenBytes, length);
  }

  #count(stat: number, amount: number): void {
    this.#stats[stat] = this.#stats[stat]! + amount;
  }
}
