/**
 * One NBD connection to a replica, driven by the worker's ring.
 *
 *   connecting ─▶ handshake ─▶ up ─▶ draining ─▶ down ─▶ connecting …
 *        └────────────┴──────────────▲
 *
 * Invariants:
 * - At most one transmit chain is in flight on a socket: sends of several chains could interleave when one has to wait.
 * - Sends and receives of a chain carry MSG_WAITALL: short transfers would put the stream out of step.
 * - `down` is reported only when no operation is in flight: until then the kernel may touch request buffers.
 */

import { errnoName } from '@blockwire/native/errors.ts';
import { allocateRegion, type Region } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import type { CompletionHandler, Ring } from '@blockwire/native/ring.ts';
import {
  type Endpoint,
  encodeSockaddr,
  openTcp,
  resetOnClose,
  tuneDataSocket,
} from '@blockwire/native/sockets.ts';
import {
  IoringOp,
  IoringRecvsend,
  Iosqe,
  MSG_MORE,
  MSG_NOSIGNAL,
  MSG_WAITALL,
} from '@blockwire/native/uapi/io-uring.ts';
import { ClientHandshake, type ClientHandshakeResult } from '@blockwire/proto/nbd/client-handshake.ts';
import {
  NBD_SIMPLE_REPLY_MAGIC,
  REQUEST_SIZE_BYTES,
  SIMPLE_REPLY_SIZE_BYTES,
} from '@blockwire/proto/nbd/constants.ts';
import { replyCookieHigh, replyCookieLow, replyMagic, simpleReplyError } from '@blockwire/proto/nbd/reply.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import { Operation, type RequestTable } from './request.ts';

/** Requests of one transmit chain; two SQEs each at most. */
export const CHAIN_REQUESTS_MAX = 64;
const RECEIVE_BYTES = 64 * 1024;

const Op = {
  CONNECT: 0,
  HANDSHAKE_SEND: 1,
  HANDSHAKE_RECEIVE: 2,
  /** A send inside a chain: it completes visibly only when it fails. */
  SEND_PART: 3,
  SEND_LAST: 4,
  REPLY: 5,
  PAYLOAD: 6,
  CANCEL: 7,
} as const;

export type ConnectionState = 'down' | 'connecting' | 'handshake' | 'up' | 'draining';

/** Where a request's payload is: in registered ublk pages (buffer index = tag), or in own memory, a stride a tag. */
export interface PayloadMemory {
  /** Null for registered pages. */
  readonly region: Region | null;
  readonly strideBytes: number;
}

export interface ConnectionOwner {
  connectionUp(connection: Connection): void;
  /** The connection broke; its operations are being ended. */
  connectionFailed(connection: Connection, reason: string): void;
  /** Nothing is in flight any more. */
  connectionDown(connection: Connection): void;
  answered(tag: number, error: number): void;
}

export interface ConnectionOptions {
  readonly ring: Ring;
  readonly requests: RequestTable;
  readonly payload: PayloadMemory;
  readonly owner: ConnectionOwner;
  readonly endpoint: Endpoint;
  readonly exportName: string;
  /** Without progress for so long, a connection with requests in flight is given up. */
  readonly timeoutMs: number;
}

export abstract class Connection implements CompletionHandler {
  protected readonly ring: Ring;
  protected readonly requests: RequestTable;
  protected readonly id: number;
  protected readonly receiveRegion: Region;
  protected fd = -1;
  protected operationsInFlight = 0;
  readonly #options: ConnectionOptions;
  readonly #transmit: Region;
  readonly #family: number;
  readonly #sockaddr: Region;
  readonly #sockaddrBytes: number;
  readonly #payload: PayloadMemory;
  /** Tags to be sent, a circular queue; capacity is a power of two ≥ depth. */
  readonly #queue: Uint16Array;
  #queueHead = 0;
  #queueTail = 0;
  /** Per tag: submitted here and not answered. */
  readonly #outstanding: Uint8Array;
  #outstandingCount = 0;
  #state: ConnectionState = 'down';
  #handshake: ClientHandshake | null = null;
  #handshakeBytes = 0;
  #result: ClientHandshakeResult | null = null;
  #chainInFlight = false;
  #chainLastBytes = 0;
  /** Tells connections of one object apart on the wire: a late reply never matches. */
  #incarnation = 0;
  #progress = 0;
  #progressSeen = 0;
  #progressMs = 0;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.ring = options.ring;
    this.requests = options.requests;
    this.#payload = options.payload;
    const { depth } = options.requests;
    this.#queue = new Uint16Array(2 ** Math.ceil(Math.log2(depth)));
    this.#outstanding = new Uint8Array(depth);
    this.#transmit = allocateRegion(Math.max(CHAIN_REQUESTS_MAX * REQUEST_SIZE_BYTES, 4096));
    this.receiveRegion = allocateRegion(RECEIVE_BYTES);
    const { family, bytes } = encodeSockaddr(options.endpoint);
    this.#family = family;
    this.#sockaddr = allocateRegion(4096);
    this.#sockaddr.bytes.set(bytes);
    this.#sockaddrBytes = bytes.length;
    this.id = this.ring.addHandler(this);
  }

  get state(): ConnectionState {
    return this.#state;
  }

  /** What the server said in the handshake; null before. */
  get result(): ClientHandshakeResult | null {
    return this.#result;
  }

  get inFlightCount(): number {
    return this.#outstandingCount;
  }

  /** Begins a connection; state must be `down`. */
  connect(nowMs: number): void {
    this.#state = 'connecting';
    this.#incarnation = (this.#incarnation + 1) >>> 0;
    this.#progressMs = nowMs;
    this.fd = openTcp(this.#family);
    tuneDataSocket(this.fd, this.#options.timeoutMs);
    // From the start: a killed process must not leave unsent data behind that holds request pages.
    resetOnClose(this.fd);
    this.operationsInFlight++;
    const { address } = this.#sockaddr;
    // io_uring takes the address's length in `off` (io_uring/net.c, io_connect_prep).
    this.ring.prepare(
      IoringOp.CONNECT,
      0,
      0,
      this.fd,
      this.#sockaddrBytes,
      address,
      0,
      0,
      this.id,
      Op.CONNECT,
      0,
    );
  }

  /** Queues the request of a tag, unless it is outstanding here. */
  submit(tag: number): void {
    if (this.#outstanding[tag] === 1) return;
    this.#outstanding[tag] = 1;
    this.#outstandingCount++;
    this.#queue[this.#queueTail & (this.#queue.length - 1)] = tag;
    this.#queueTail = (this.#queueTail + 1) >>> 0;
  }

  /** Breaks the connection: resets the socket and waits for its operations to end. */
  fail(reason: string): void {
    if (this.#state === 'down' || this.#state === 'draining') return;
    this.#state = 'draining';
    native.shutdown(this.fd);
    // A socket that is still connecting does not end by shutdown everywhere.
    this.operationsInFlight++;
    this.ring.cancelAll(this.fd, this.id, Op.CANCEL, 0);
    this.#options.owner.connectionFailed(this, reason);
  }

  /** Looks for a peer that went silent. @param nowMs monotonic */
  tick(nowMs: number): void {
    if (this.#state === 'down' || this.#state === 'draining') return;
    const idle = this.#state === 'up' && this.#outstandingCount === 0;
    if (idle || this.#progress !== this.#progressSeen) {
      this.#progressSeen = this.#progress;
      this.#progressMs = nowMs;
    } else if (nowMs - this.#progressMs > this.#options.timeoutMs) {
      this.fail(`no answer for ${this.#options.timeoutMs} ms`);
    }
  }

  /** Sends what is queued, as one chain, unless a chain is in flight. Called once a batch. */
  flush(): void {
    if (this.#queueHead === this.#queueTail || this.#chainInFlight || this.#state !== 'up') return;
    const { ring, requests } = this;
    const queued = (this.#queueTail - this.#queueHead) >>> 0;
    const count = Math.min(queued, CHAIN_REQUESTS_MAX);
    ring.reserve(2 * count);
    const mask = this.#queue.length - 1;
    let headerStart = 0;
    let headerEnd = 0;
    for (let i = 0; i < count; i++) {
      const tag = this.#queue[(this.#queueHead + i) & mask]!;
      const operation = requests.operation[tag]!;
      const length = requests.lengthBytes[tag]!;
      encodeRequest(
        this.#transmit.view,
        headerEnd,
        requests.flags[tag]!,
        operation,
        this.#incarnation,
        tag,
        requests.offsetBytes[tag]!,
        length,
      );
      headerEnd += REQUEST_SIZE_BYTES;
      const last = i === count - 1;
      if (operation === Operation.WRITE) {
        this.#sendHeaders(headerStart, headerEnd, false);
        this.#sendPayload(tag, length, last);
        headerStart = headerEnd;
      } else if (last) {
        this.#sendHeaders(headerStart, headerEnd, true);
      }
    }
    this.#queueHead = (this.#queueHead + count) >>> 0;
    this.#chainInFlight = true;
    // However long, a chain completes visibly once: its last send, or the first one that failed.
    this.operationsInFlight++;
  }

  complete(operation: number, data: number, result: number, flags: number): void {
    switch (operation) {
      case Op.REPLY:
      case Op.PAYLOAD:
        this.operationsInFlight--;
        this.#progress++;
        if (this.#state === 'up') this.received(operation === Op.PAYLOAD, data, result, flags);
        break;
      case Op.SEND_LAST:
      case Op.SEND_PART:
        this.operationsInFlight--;
        this.#progress++;
        this.#chainInFlight = false;
        if (operation === Op.SEND_PART || result !== this.#chainLastBytes)
          this.fail(describe('send', result));
        break;
      case Op.CONNECT:
        this.operationsInFlight--;
        if (result < 0) this.fail(describe('connect', result));
        else if (this.#state === 'connecting') this.#startHandshake();
        break;
      case Op.HANDSHAKE_SEND:
        this.operationsInFlight--;
        if (result < 0) this.fail(describe('handshake', result));
        break;
      case Op.HANDSHAKE_RECEIVE:
        this.operationsInFlight--;
        if (result <= 0) this.fail(describe('handshake', result));
        else if (this.#state === 'handshake') this.#continueHandshake(result);
        break;
      default:
        this.operationsInFlight--;
    }
    if (this.#state === 'draining' && this.operationsInFlight === 0) this.#finishDraining();
  }

  /** Arms the first receive of the transmission phase. */
  protected abstract startReceiving(): void;

  /** A receive of the transmission phase ended. */
  protected abstract received(payload: boolean, data: number, result: number, flags: number): void;

  /** Receives into own memory. */
  protected receiveReply(offsetBytes: number, lengthBytes: number, messageFlags: number): void {
    this.operationsInFlight++;
    this.ring.receive(
      this.fd,
      this.receiveRegion,
      offsetBytes,
      lengthBytes,
      messageFlags,
      0,
      this.id,
      Op.REPLY,
      0,
    );
  }

  /** Receives a read's payload into its request's buffer, linked to what is prepared next. */
  protected receivePayload(tag: number): void {
    this.operationsInFlight++;
    const length = this.requests.lengthBytes[tag]!;
    this.#preparePayload(IoringOp.RECV, Iosqe.IO_LINK, tag, length, MSG_WAITALL, Op.PAYLOAD);
  }

  /** The tag that a reply answers, or -1 after the connection was failed for a reply that answers nothing. */
  protected replyTag(at: number): number {
    const { view } = this.receiveRegion;
    const tag = replyCookieLow(view, at);
    if (
      replyMagic(view, at) === NBD_SIMPLE_REPLY_MAGIC &&
      replyCookieHigh(view, at) === this.#incarnation &&
      tag < this.#outstanding.length &&
      this.#outstanding[tag] === 1
    ) {
      return tag;
    }
    this.fail('the server sent a reply to nothing that was asked');
    return -1;
  }

  protected replyError(at: number): number {
    return simpleReplyError(this.receiveRegion.view, at);
  }

  /** Takes the tag off this connection and hands its outcome on. */
  protected answer(tag: number, error: number): void {
    this.#outstanding[tag] = 0;
    this.#outstandingCount--;
    this.#options.owner.answered(tag, error);
  }

  protected receiveFailed(result: number): void {
    this.fail(describe('receive', result));
  }

  #sendHeaders(start: number, end: number, last: boolean): void {
    const length = end - start;
    if (last) this.#chainLastBytes = length;
    this.ring.send(
      this.fd,
      this.#transmit,
      start,
      length,
      last ? MSG_WAITALL | MSG_NOSIGNAL : MSG_WAITALL | MSG_NOSIGNAL | MSG_MORE,
      last ? 0 : Iosqe.IO_LINK | Iosqe.CQE_SKIP_SUCCESS,
      this.id,
      last ? Op.SEND_LAST : Op.SEND_PART,
      0,
    );
  }

  #sendPayload(tag: number, length: number, last: boolean): void {
    if (last) this.#chainLastBytes = length;
    this.#preparePayload(
      IoringOp.SEND,
      last ? 0 : Iosqe.IO_LINK | Iosqe.CQE_SKIP_SUCCESS,
      tag,
      length,
      last ? MSG_WAITALL | MSG_NOSIGNAL : MSG_WAITALL | MSG_NOSIGNAL | MSG_MORE,
      last ? Op.SEND_LAST : Op.SEND_PART,
    );
  }

  #preparePayload(
    opcode: number,
    sqeFlags: number,
    tag: number,
    length: number,
    messageFlags: number,
    operation: number,
  ): void {
    const { region, strideBytes } = this.#payload;
    const ioprio = region === null ? IoringRecvsend.FIXED_BUF : 0;
    const { ring, fd, id } = this;
    // In a registered buffer the address is an offset into the request.
    const at = ring.prepare(opcode, sqeFlags, ioprio, fd, 0, 0, length, messageFlags, id, operation, tag);
    if (region !== null) ring.pointTo(at, region, tag * strideBytes);
    else ring.sqes[at + 10] = tag; // buf_index
  }

  #startHandshake(): void {
    this.#state = 'handshake';
    this.#progress++;
    this.#handshake = new ClientHandshake({ exportName: this.#options.exportName, structuredReplies: false });
    this.#handshakeBytes = 0;
    this.#receiveHandshake();
  }

  #receiveHandshake(): void {
    this.operationsInFlight++;
    const at = this.#handshakeBytes;
    const room = RECEIVE_BYTES - at;
    this.ring.receive(this.fd, this.receiveRegion, at, room, 0, 0, this.id, Op.HANDSHAKE_RECEIVE, 0);
  }

  #continueHandshake(received: number): void {
    const handshake = this.#handshake;
    if (handshake === null) return;
    this.#progress++;
    const { bytes } = this.receiveRegion;
    this.#handshakeBytes += received;
    const consumed = handshake.consume(bytes.subarray(0, this.#handshakeBytes));
    bytes.copyWithin(0, consumed, this.#handshakeBytes);
    this.#handshakeBytes -= consumed;
    if (handshake.state === 'failed') {
      this.fail(handshake.failure?.message ?? 'the handshake failed');
    } else if (handshake.state === 'ready') {
      this.#handshake = null;
      this.#result = handshake.result;
      if (this.#handshakeBytes > 0) {
        this.fail('the server sent replies before it was asked');
        return;
      }
      this.#state = 'up';
      this.startReceiving();
      this.#options.owner.connectionUp(this);
    } else {
      this.#sendHandshake(handshake.takeOutput());
      if (this.#handshakeBytes === RECEIVE_BYTES) this.fail('the handshake is longer than a client reads');
      else this.#receiveHandshake();
    }
  }

  #sendHandshake(output: Uint8Array): void {
    if (output.length === 0) return;
    this.#transmit.bytes.set(output);
    this.operationsInFlight++;
    const flags = MSG_WAITALL | MSG_NOSIGNAL;
    this.ring.send(this.fd, this.#transmit, 0, output.length, flags, 0, this.id, Op.HANDSHAKE_SEND, 0);
  }

  #finishDraining(): void {
    native.close(this.fd);
    this.fd = -1;
    this.#queueHead = 0;
    this.#queueTail = 0;
    this.#outstanding.fill(0);
    this.#outstandingCount = 0;
    this.#chainInFlight = false;
    this.#state = 'down';
    this.#options.owner.connectionDown(this);
  }
}

function describe(what: string, result: number): string {
  if (result === 0) return `${what}: closed by the peer`;
  if (result > 0) return `${what}: cut short after ${result} bytes`;
  return `${what}: ${errnoName(-result)}`;
}

/** For everything but reads: replies are 16 bytes each and arrive many at a time. */
export class WriteConnection extends Connection {
  #filled = 0;

  protected override startReceiving(): void {
    this.#filled = 0;
    this.receiveReply(0, RECEIVE_BYTES, 0);
  }

  protected override received(_payload: boolean, _data: number, result: number): void {
    if (result <= 0) {
      this.receiveFailed(result);
      return;
    }
    const end = this.#filled + result;
    let at = 0;
    while (end - at >= SIMPLE_REPLY_SIZE_BYTES) {
      const tag = this.replyTag(at);
      if (tag < 0) return;
      this.answer(tag, this.replyError(at));
      at += SIMPLE_REPLY_SIZE_BYTES;
    }
    this.#filled = end - at;
    if (this.#filled > 0) this.receiveRegion.bytes.copyWithin(0, at, end);
    this.receiveReply(this.#filled, RECEIVE_BYTES - this.#filled, 0);
  }
}

/**
 * For reads: a reply's header, then its payload straight into the request's buffer. The receive of the next header is
 * linked to the payload's, so that a reply takes one trip through the ring.
 */
export class ReadConnection extends Connection {
  protected override startReceiving(): void {
    this.receiveReply(0, SIMPLE_REPLY_SIZE_BYTES, MSG_WAITALL);
  }

  protected override received(payload: boolean, data: number, result: number): void {
    if (payload) {
      if (result === this.requests.lengthBytes[data]) this.answer(data, 0);
      else this.receiveFailed(result);
      return;
    }
    if (result !== SIMPLE_REPLY_SIZE_BYTES) {
      this.receiveFailed(result);
      return;
    }
    const tag = this.replyTag(0);
    if (tag < 0) return;
    const error = this.replyError(0);
    if (error !== 0) {
      this.answer(tag, error);
    } else {
      this.ring.reserve(2);
      this.receivePayload(tag);
    }
    this.receiveReply(0, SIMPLE_REPLY_SIZE_BYTES, MSG_WAITALL);
  }
}
