/**
 * The transmit chain of one connection: headers and payloads of the queued requests as linked sends, in order.
 *
 *   SENDMSG(headers and payloads from own memory …) → SEND or SEND_ZC(registered pages) → SENDMSG(…) → …
 *
 * A chain without pages is one message that takes what room the socket has (MSG_DONTWAIT). It has ended when the `enter`
 * that submits it returns, and says nothing when all of it went out: no wait is cut short by it. What was left is sent by
 * a message that waits.
 *
 * Invariants:
 * - Every other part waits for all of its bytes (MSG_WAITALL): a short send would put the stream out of step.
 * - A chain completes visibly once, by its last part or the first that failed, except for SEND_ZC: it cannot skip its
 *   completion, and when it fails the kernel also reports every part behind it (io_uring/timeout.c, io_fail_links).
 * - Each SEND_ZC posts one notification, also when it was cancelled before it ran (io_uring/net.c, io_send_zc_cleanup).
 */
import { errnoName } from '@blockwire/native/errors.ts';
import { allocateRegion, type Region } from '@blockwire/native/memory.ts';
import type { Ring } from '@blockwire/native/ring.ts';
import {
  IORING_NOTIF_USAGE_ZC_COPIED,
  IoringCqe,
  IoringOp,
  IoringRecvsend,
  Iosqe,
  MSG_DONTWAIT,
  MSG_MORE,
  MSG_NOSIGNAL,
  MSG_WAITALL,
} from '@blockwire/native/uapi/io-uring.ts';
import { REQUEST_SIZE_BYTES } from '@blockwire/proto/nbd/constants.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import { CounterIndex } from './counters.ts';
import { Gather } from './gather.ts';
import type { DatapathLadder } from './messages.ts';
import type { Payload } from './payload.ts';
import { Operation, type RequestTable } from './request.ts';
import { ZeroCopyChoice } from './zero-copy-choice.ts';

/** Requests of one transmit chain; two SQEs each at most. */
export const CHAIN_REQUESTS_MAX = 64;

/** The sending half of a connection. */
export interface Transmit {
  /** Something is being sent: the next chain has to wait. */
  readonly busy: boolean;
  /** A completion that ends it is to come. */
  readonly awaitsCompletion: boolean;
  /** Zero-copy sends whose pages the kernel may still read. */
  readonly notifications: number;
  /**
   * Sends `count` requests (up to CHAIN_REQUESTS_MAX) of the circular `queue`, whose length is a power of two, from `head`
   * on. Not while `busy`. Returns what is wrong, or null.
   */
  start(
    fd: number,
    handler: number,
    cookieHigh: number,
    queue: Uint16Array,
    head: number,
    count: number,
  ): string | null;
  /** A completion of an operation from TRANSMIT_OPERATION_MIN up. Returns what is wrong, or null. */
  complete(operation: number, data: number, result: number, flags: number): string | null;
  /** Takes note of what ended without a completion; once a batch, after its completions. */
  settle(): void;
  /** Forgets what a connection that ended was sending. */
  reset(): void;
}

/** Operation numbers on the ring; a connection's own are below. */
export const TransmitOp = {
  PART: 16,
  LAST: 17,
  ZERO_COPY_PART: 18,
  ZERO_COPY_LAST: 19,
  AT_ONCE: 20,
} as const;
export const TRANSMIT_OPERATION_MIN = TransmitOp.PART;

const PART_FLAGS = MSG_WAITALL | MSG_NOSIGNAL | MSG_MORE;
const LAST_FLAGS = MSG_WAITALL | MSG_NOSIGNAL;
// MSG_WAITALL makes a short send a failure, and so visible (io_uring/net.c, io_send).
const AT_ONCE_FLAGS = LAST_FLAGS | MSG_DONTWAIT;
const PART_SQE_FLAGS = Iosqe.IO_LINK | Iosqe.CQE_SKIP_SUCCESS;

const EAGAIN = 11;

export interface TransmitOptions {
  readonly ring: Ring;
  readonly requests: RequestTable;
  readonly payload: Payload;
  readonly ladder: DatapathLadder;
  readonly counters: Float64Array;
}

export class ChainTransmitter implements Transmit {
  readonly #ring: Ring;
  readonly #requests: RequestTable;
  readonly #payload: Payload;
  readonly #counters: Float64Array;
  readonly #zeroCopy: ZeroCopyChoice;
  readonly #headers: Region;
  readonly #gather: Gather;
  #inFlight = false;
  #broken = false;
  #lastBytes = 0;
  #fd = -1;
  #handler = 0;
  /** What is in flight says nothing when it succeeds; the ring's `writtenCount` behind it. */
  #isAtOnce = false;
  #atOnceEnd = 0;
  #notifications = 0;

  constructor(options: TransmitOptions) {
    this.#ring = options.ring;
    this.#requests = options.requests;
    this.#payload = options.payload;
    this.#counters = options.counters;
    this.#zeroCopy = new ZeroCopyChoice(options.ladder);
    this.#headers = allocateRegion(CHAIN_REQUESTS_MAX * REQUEST_SIZE_BYTES);
    // A header and a payload a request.
    const limits = { piecesMax: 2 * CHAIN_REQUESTS_MAX, messagesMax: CHAIN_REQUESTS_MAX + 1 };
    this.#gather = new Gather(this.#ring, limits);
  }

  get busy(): boolean {
    return this.#inFlight;
  }

  get awaitsCompletion(): boolean {
    return this.#inFlight && !this.#isAtOnce;
  }

  get notifications(): number {
    return this.#notifications;
  }

  settle(): void {
    if (!this.#isAtOnce || !this.#ring.hasTaken(this.#atOnceEnd)) return;
    this.#isAtOnce = false;
    this.#inFlight = false;
  }

  reset(): void {
    this.#inFlight = false;
    this.#isAtOnce = false;
    this.#broken = false;
    this.#zeroCopy.reset();
  }

  start(
    fd: number,
    handler: number,
    cookieHigh: number,
    queue: Uint16Array,
    head: number,
    count: number,
  ): null {
    const requests = this.#requests;
    const payload = this.#payload;
    const gather = this.#gather;
    const mask = queue.length - 1;
    this.#fd = fd;
    this.#handler = handler;
    this.#ring.reserve(2 * count);
    gather.clear();
    let lastPieceIsHeader = false;
    for (let i = 0; i < count; i++) {
      const tag = queue[(head + i) & mask]!;
      const operation = requests.operation[tag]!;
      const length = requests.lengthBytes[tag]!;
      const at = i * REQUEST_SIZE_BYTES;
      encodeRequest(
        this.#headers.view,
        at,
        requests.flags[tag]!,
        operation,
        cookieHigh,
        tag,
        requests.offsetBytes[tag]!,
        length,
      );
      // Headers follow each other in memory: with no payload between them they are one piece.
      if (lastPieceIsHeader) gather.extend(REQUEST_SIZE_BYTES);
      else gather.append(this.#headers, at, REQUEST_SIZE_BYTES);
      lastPieceIsHeader = operation !== Operation.WRITE;
      if (lastPieceIsHeader) continue;
      if (payload.isOwn(length)) {
        gather.append(payload.own!, tag * payload.strideBytes, length);
      } else {
        gather.send(fd, PART_SQE_FLAGS, PART_FLAGS, handler, TransmitOp.PART);
        this.#sendPages(tag, length, i === count - 1);
      }
    }
    this.#inFlight = true;
    this.#broken = false;
    if (gather.isEmpty) return null;
    if (gather.isFirst) this.#sendAtOnce();
    else this.#sendLast();
    return null;
  }

  complete(operation: number, data: number, result: number, flags: number): string | null {
    if (operation === TransmitOp.ZERO_COPY_PART || operation === TransmitOp.ZERO_COPY_LAST) {
      if ((flags & IoringCqe.NOTIF) !== 0) {
        // As a signed number: the flag is the sign.
        this.#notified(result === (IORING_NOTIF_USAGE_ZC_COPIED | 0));
        return null;
      }
      if (operation === TransmitOp.ZERO_COPY_LAST) this.#inFlight = false;
      if (this.#broken || result === this.#requests.lengthBytes[data]) return null;
      this.#broken = true;
      return describeTransfer('send', result);
    }
    if (operation === TransmitOp.AT_ONCE) {
      this.#isAtOnce = false;
      if (result === -EAGAIN || (result > 0 && result < this.#gather.messageBytes)) {
        this.#gather.keepBehind(result > 0 ? result : 0);
        this.#sendLast();
        return null;
      }
    }
    // A part shows itself only when it failed, or behind a SEND_ZC that did.
    if (operation === TransmitOp.PART && this.#broken) return null;
    this.#inFlight = false;
    if (this.#broken) return null;
    if (operation === TransmitOp.LAST && result === this.#lastBytes) return null;
    this.#broken = true;
    return describeTransfer('send', result);
  }

  /** The kernel is done with the pages of a zero-copy send. */
  #notified(copied: boolean): void {
    this.#notifications--;
    this.#count(CounterIndex.zeroCopySends);
    if (copied) this.#count(CounterIndex.zeroCopyCopied);
    this.#zeroCopy.noteOutcome(copied);
  }

  #count(index: number): void {
    this.#counters[index] = this.#counters[index]! + 1;
  }

  #sendAtOnce(): void {
    const { AT_ONCE } = TransmitOp;
    this.#gather.send(this.#fd, Iosqe.CQE_SKIP_SUCCESS, AT_ONCE_FLAGS, this.#handler, AT_ONCE);
    this.#isAtOnce = true;
    this.#atOnceEnd = this.#ring.writtenCount;
  }

  #sendLast(): void {
    this.#gather.send(this.#fd, 0, LAST_FLAGS, this.#handler, TransmitOp.LAST);
    this.#lastBytes = this.#gather.messageBytes;
  }

  #sendPages(tag: number, length: number, last: boolean): void {
    const zeroCopy = this.#zeroCopy.take(length);
    const ring = this.#ring;
    // In a registered buffer the address is an offset into the request.
    const at = ring.prepare(
      zeroCopy ? IoringOp.SEND_ZC : IoringOp.SEND,
      last ? 0 : zeroCopy ? Iosqe.IO_LINK : PART_SQE_FLAGS,
      zeroCopy ? IoringRecvsend.FIXED_BUF | IoringRecvsend.SEND_ZC_REPORT_USAGE : IoringRecvsend.FIXED_BUF,
      this.#fd,
      0,
      0,
      length,
      last ? LAST_FLAGS : PART_FLAGS,
      this.#handler,
      zeroCopy
        ? last
          ? TransmitOp.ZERO_COPY_LAST
          : TransmitOp.ZERO_COPY_PART
        : last
          ? TransmitOp.LAST
          : TransmitOp.PART,
      tag,
    );
    ring.sqes[at + 10] = tag; // buf_index
    if (zeroCopy) this.#notifications++;
    if (last) this.#lastBytes = length;
  }
}

/** What a transfer that is not whole says about itself. */
export function describeTransfer(what: string, result: number): string {
  if (result === 0) return `${what}: closed by the peer`;
  if (result > 0) return `${what}: cut short after ${result} bytes`;
  return `${what}: ${errnoName(-result)}`;
}
