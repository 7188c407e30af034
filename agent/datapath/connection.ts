/**
 * One NBD connection to a replica, driven by the worker's ring.
 *
 *   connecting ─▶ handshake ─▶ up ─▶ draining ─▶ down ─▶ connecting …
 *        └────────────┴──────────────▲
 *
 * Invariants:
 * - At most one transmit chain is in flight on a socket: sends of several chains could interleave when one has to wait.
 * - `down` is reported only when no operation is in flight: until then the kernel may touch request buffers. What zero-copy
 *   sends still hold is let go by closing the socket, which resets it (SO_LINGER 0).
 */

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
import { IoringOp } from '@blockwire/native/uapi/io-uring.ts';
import type { ClientHandshakeResult } from '@blockwire/proto/nbd/client-handshake.ts';
import { NBD_SIMPLE_REPLY_MAGIC } from '@blockwire/proto/nbd/constants.ts';
import { replyCookieHigh, replyCookieLow, replyMagic, simpleReplyError } from '@blockwire/proto/nbd/reply.ts';
import { PeerWatch } from './peer-watch.ts';
import { MARK_ROWS, type RequestTable } from './request.ts';
import { HANDSHAKE_BYTES, HANDSHAKE_OPERATION_MIN, HandshakeOp, RingHandshake } from './ring-handshake.ts';
import {
  CHAIN_REQUESTS_MAX,
  describeTransfer,
  TRANSMIT_OPERATION_MIN,
  type Transmit,
  type TransmitOptions,
} from './transmit.ts';

const Op = {
  CONNECT: 0,
  CANCEL: 1,
  /** Receives of the transmission phase: a reply's header or several replies, and a payload. */
  REPLY: 2,
  PAYLOAD: 3,
} as const;
export const ReceiveOp = { REPLY: Op.REPLY, PAYLOAD: Op.PAYLOAD } as const;

export type ConnectionState = 'down' | 'connecting' | 'handshake' | 'up' | 'draining';

export interface ConnectionOwner {
  connectionUp(connection: Connection): void;
  /** Nothing has moved for half of the timeout; said at each tick. */
  connectionSilent(connection: Connection): void;
  /**
   * The connection broke; its operations are being ended.
   * @param refusal the BW_ code by which a node did not let it in, or null
   */
  connectionFailed(connection: Connection, reason: string, refusal: string | null): void;
  /** Nothing is in flight any more. */
  connectionDown(connection: Connection): void;
  answered(tag: number, error: number): void;
}

export interface ConnectionOptions extends TransmitOptions {
  /** The sending half: one for each connection. */
  readonly makeTransmit: (options: TransmitOptions) => Transmit;
  readonly owner: ConnectionOwner;
  /** Without progress for so long, a connection with requests in flight is given up. */
  readonly timeoutMs: number;
}

export abstract class Connection implements CompletionHandler {
  protected readonly ring: Ring;
  protected readonly requests: RequestTable;
  protected readonly id: number;
  /** Replies, before that the handshake. */
  protected readonly receiveRegion: Region;
  protected fd = -1;
  protected operationsInFlight = 0;
  readonly #options: ConnectionOptions;
  readonly #transmit: Transmit;
  readonly #sockaddr: Region;
  #exportName = '';
  /** Rows to be sent, a circular queue; capacity is a power of two ≥ the rows there are. */
  readonly #queue: Uint16Array;
  #queueHead = 0;
  #queueTail = 0;
  /** Per row: submitted here and not answered. */
  readonly #outstanding: Uint8Array;
  #outstandingCount = 0;
  #state: ConnectionState = 'down';
  readonly #handshake: RingHandshake;
  /** Tells connections of one object apart on the wire: a late reply never matches. */
  #incarnation = 0;
  readonly #watch: PeerWatch;
  /** Receives that brought something, and answers to requests, so far. What was sent is no sign of life. */
  #progress = 0;
  #answers = 0;

  /** @param receiveBytes room for replies */
  constructor(options: ConnectionOptions, receiveBytes: number) {
    this.#options = options;
    this.ring = options.ring;
    this.requests = options.requests;
    const rows = options.requests.depth + MARK_ROWS;
    this.#queue = new Uint16Array(2 ** Math.ceil(Math.log2(rows)));
    this.#outstanding = new Uint8Array(rows);
    this.#transmit = options.makeTransmit(options);
    this.receiveRegion = allocateRegion(Math.max(receiveBytes, HANDSHAKE_BYTES));
    this.#sockaddr = allocateRegion(4096);
    this.#watch = new PeerWatch(options.timeoutMs);
    this.id = this.ring.addHandler(this);
    this.#handshake = new RingHandshake(this.ring, this.id, this.receiveRegion);
  }

  get state(): ConnectionState {
    return this.#state;
  }

  /** What the server said in the handshake; null before. */
  get result(): ClientHandshakeResult | null {
    return this.#handshake.result;
  }

  get inFlightCount(): number {
    return this.#outstandingCount;
  }

  /** Begins a connection; state must be `down`. */
  connect(endpoint: Endpoint, exportName: string, nowMs: number): void {
    const { family, bytes } = encodeSockaddr(endpoint);
    this.#sockaddr.bytes.set(bytes);
    this.#exportName = exportName;
    this.#state = 'connecting';
    this.#incarnation = (this.#incarnation + 1) >>> 0;
    this.#watch.begin(nowMs);
    this.fd = openTcp(family);
    tuneDataSocket(this.fd, this.#options.timeoutMs);
    // From the start: a killed process must not leave unsent data behind that holds request pages.
    resetOnClose(this.fd);
    this.operationsInFlight++;
    const { address } = this.#sockaddr;
    // io_uring takes the address's length in `off` (io_uring/net.c, io_connect_prep).
    this.ring.prepare(IoringOp.CONNECT, 0, 0, this.fd, bytes.length, address, 0, 0, this.id, Op.CONNECT, 0);
  }

  /** Queues MARK or CHECKPOINT; only on a connection that is up. */
  submitMark(row: number): void {
    if (this.#outstanding[row] === 1) this.fail('several marks without an answer');
    else this.submit(row);
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
  fail(reason: string, refusal: string | null = null): void {
    if (this.#state === 'down' || this.#state === 'draining') return;
    this.#state = 'draining';
    native.shutdown(this.fd);
    // A socket that is still connecting does not end by shutdown everywhere.
    this.operationsInFlight++;
    this.ring.cancelAll(this.fd, this.id, Op.CANCEL, 0);
    this.#options.owner.connectionFailed(this, reason, refusal);
  }

  /** Looks for a peer that went silent. @param nowMs monotonic */
  tick(nowMs: number): void {
    if (this.#state === 'down' || this.#state === 'draining') return;
    const isIdle = this.#state === 'up' && this.#outstandingCount === 0;
    const { timeoutMs, requestMsMax } = this.#watch;
    switch (this.#watch.tick(nowMs, isIdle, this.#progress, this.#answers)) {
      case 'silent':
        this.fail(`no answer for ${timeoutMs} ms`);
        break;
      case 'stuck':
        this.fail(`a request without an answer for ${requestMsMax} ms`);
        break;
      case 'ask':
        if (this.#state === 'up') this.#options.owner.connectionSilent(this);
        break;
      default:
    }
  }

  /** Receives again and sends what is queued. Called once a batch, after the copies of the batch are done. */
  flush(): void {
    this.#transmit.settle();
    if (this.#state !== 'up') return;
    this.continueReceiving();
    const queued = (this.#queueTail - this.#queueHead) >>> 0;
    if (queued === 0 || this.#transmit.busy) return;
    const count = queued < CHAIN_REQUESTS_MAX ? queued : CHAIN_REQUESTS_MAX;
    const head = this.#queueHead;
    this.#queueHead = (head + count) >>> 0;
    const wrong = this.#transmit.start(this.fd, this.id, this.#incarnation, this.#queue, head, count);
    if (wrong !== null) this.fail(wrong);
  }

  complete(operation: number, data: number, result: number, flags: number): void {
    if (operation >= TRANSMIT_OPERATION_MIN) {
      // What is left to be sent on a connection that is given up stays unsent.
      const wrong = this.#transmit.complete(operation, data, result, flags);
      if (wrong !== null) this.fail(wrong);
    } else if (operation >= HANDSHAKE_OPERATION_MIN) {
      this.#shook(operation, result);
    } else {
      this.operationsInFlight--;
      this.#received(operation, data, result, flags);
    }
    // What waits for no completion ended before the cancel that `fail` submits behind it.
    if (this.#state !== 'draining' || this.#transmit.awaitsCompletion) return;
    if (this.operationsInFlight + this.#handshake.operationsInFlight === 0) this.#drain();
  }

  #received(operation: number, data: number, result: number, flags: number): void {
    switch (operation) {
      case Op.REPLY:
      case Op.PAYLOAD:
        this.#progress++;
        if (this.#state === 'up') this.received(operation === Op.PAYLOAD, data, result, flags);
        break;
      case Op.CONNECT:
        if (result < 0) this.fail(describeTransfer('connect', result));
        else if (this.#state === 'connecting') this.#startHandshake();
        break;
      default: // CANCEL
    }
  }

  /** Arms the first receive of the transmission phase. */
  protected abstract startReceiving(): void;

  /** Arms what waited for the end of the batch. */
  protected abstract continueReceiving(): void;

  /** A receive of the transmission phase ended. */
  protected abstract received(payload: boolean, data: number, result: number, flags: number): void;

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
    // Nobody waits for the answer to a mark: it only shows that the replica is there.
    if (tag >= this.requests.depth) return;
    this.#answers++;
    this.#options.owner.answered(tag, error);
  }

  protected receiveFailed(result: number): void {
    this.fail(describeTransfer('receive', result));
  }

  #startHandshake(): void {
    this.#state = 'handshake';
    this.#progress++;
    this.#handshake.start(this.fd, this.#exportName);
  }

  /** An operation of the handshake ended. */
  #shook(operation: number, result: number): void {
    if (operation === HandshakeOp.RECEIVE) this.#progress++;
    const outcome = this.#handshake.complete(operation, result, this.#state === 'handshake');
    if (outcome === false) return;
    if (outcome !== true) {
      this.fail(outcome.reason, outcome.refusal);
      return;
    }
    this.#state = 'up';
    this.startReceiving();
    this.#options.owner.connectionUp(this);
  }

  #drain(): void {
    // Closing drops what is unsent, and with it the last references of zero-copy sends; their notifications follow.
    if (this.fd >= 0) native.close(this.fd);
    this.fd = -1;
    if (this.#transmit.notifications > 0) return;
    this.#transmit.reset();
    this.#queueHead = 0;
    this.#queueTail = 0;
    this.#outstanding.fill(0);
    this.#outstandingCount = 0;
    this.#state = 'down';
    this.#options.owner.connectionDown(this);
  }
}
