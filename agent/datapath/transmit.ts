/**
 * The transmit chain of one connection: headers and payloads of the queued requests as linked sends, in order.
 *
 *   SENDMSG(headers and payloads from own memory …) → SEND or SEND_ZC(registered pages) → SENDMSG(…) → …
 *
 * Invariants:
 * - Every part waits for all of its bytes (MSG_WAITALL): a short send would put the stream out of step.
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
  MSG_MORE,
  MSG_NOSIGNAL,
  MSG_WAITALL,
} from '@blockwire/native/uapi/io-uring.ts';
import { REQUEST_SIZE_BYTES } from '@blockwire/proto/nbd/constants.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import { CounterIndex } from './counters.ts';
import type { DatapathLadder } from './messages.ts';
import type { Payload } from './payload.ts';
import { Operation, type RequestTable } from './request.ts';

/** Requests of one transmit chain; two SQEs each at most. */
export const CHAIN_REQUESTS_MAX = 64;

/** The sending half of a connection. */
export interface Transmit {
  /** Something is being sent: the next chain has to wait. */
  readonly busy: boolean;
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
  /** Forgets what a connection that ended was sending. */
  reset(): void;
}

/** Operation numbers on the ring; a connection's own are below. */
export const TransmitOp = { PART: 16, LAST: 17, ZERO_COPY_PART: 18, ZERO_COPY_LAST: 19 } as const;
export const TRANSMIT_OPERATION_MIN = TransmitOp.PART;

const PART_FLAGS = MSG_WAITALL | MSG_NOSIGNAL | MSG_MORE;
const LAST_FLAGS = MSG_WAITALL | MSG_NOSIGNAL;
const PART_SQE_FLAGS = Iosqe.IO_LINK | Iosqe.CQE_SKIP_SUCCESS;

/** struct iovec and struct user_msghdr of a 64-bit kernel, in words. */
const IOVEC_WORDS = 4;
const MSGHDR_WORDS = 14;
/** A header and a payload a request. */
const IOVECS_MAX = 2 * CHAIN_REQUESTS_MAX;
const MSGHDRS_MAX = CHAIN_REQUESTS_MAX + 1;
const TWO_TO_32 = 0x1_0000_0000;

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
  readonly #zeroCopyBytesMin: number;
  readonly #headers: Region;
  /** iovecs, then msghdrs. */
  readonly #vectors: Region;
  readonly #words: Uint32Array;
  #inFlight = false;
  #broken = false;
  #lastBytes = 0;
  #notifications = 0;
  // The message being gathered: its first iovec, the one behind its last, its bytes.
  #iovecFirst = 0;
  #iovecEnd = 0;
  #messageBytes = 0;
  #messages = 0;
  #lastPieceIsHeader = false;

  constructor(options: TransmitOptions) {
    this.#ring = options.ring;
    this.#requests = options.requests;
    this.#payload = options.payload;
    this.#counters = options.counters;
    const { send, zeroCopyBytesMin } = options.ladder;
    this.#zeroCopyBytesMin = send === 'zc' ? zeroCopyBytesMin : Number.POSITIVE_INFINITY;
    this.#headers = allocateRegion(CHAIN_REQUESTS_MAX * REQUEST_SIZE_BYTES);
    this.#vectors = allocateRegion((IOVECS_MAX * IOVEC_WORDS + MSGHDRS_MAX * MSGHDR_WORDS) * 4);
    this.#words = this.#vectors.words;
  }

  get busy(): boolean {
    return this.#inFlight;
  }

  get notifications(): number {
    return this.#notifications;
  }

  reset(): void {
    this.#inFlight = false;
    this.#broken = false;
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
    const mask = queue.length - 1;
    this.#ring.reserve(2 * count);
    this.#iovecFirst = 0;
    this.#iovecEnd = 0;
    this.#messageBytes = 0;
    this.#messages = 0;
    this.#lastPieceIsHeader = false;
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
      if (this.#lastPieceIsHeader) this.#extend(REQUEST_SIZE_BYTES);
      else this.#append(this.#headers, at, REQUEST_SIZE_BYTES);
      this.#lastPieceIsHeader = true;
      const last = i === count - 1;
      if (operation === Operation.WRITE) {
        if (payload.isOwn(length)) {
          this.#append(payload.own!, tag * payload.strideBytes, length);
          this.#lastPieceIsHeader = false;
        } else {
          this.#sendGathered(fd, handler, false);
          this.#sendPages(fd, handler, tag, length, last);
          this.#lastPieceIsHeader = false;
        }
      }
    }
    if (this.#iovecEnd > this.#iovecFirst) this.#sendGathered(fd, handler, true);
    this.#inFlight = true;
    this.#broken = false;
    return null;
  }

  complete(operation: number, data: number, result: number, flags: number): string | null {
    if (operation === TransmitOp.ZERO_COPY_PART || operation === TransmitOp.ZERO_COPY_LAST) {
      if ((flags & IoringCqe.NOTIF) !== 0) {
        this.#notifications--;
        this.#count(CounterIndex.zeroCopySends);
        // As a signed number: the flag is the sign.
        if (result === (IORING_NOTIF_USAGE_ZC_COPIED | 0)) this.#count(CounterIndex.zeroCopyCopied);
        return null;
      }
      if (operation === TransmitOp.ZERO_COPY_LAST) this.#inFlight = false;
      if (this.#broken || result === this.#requests.lengthBytes[data]) return null;
      this.#broken = true;
      return describeTransfer('send', result);
    }
    // A part shows itself only when it failed, or behind a SEND_ZC that did.
    if (operation === TransmitOp.PART && this.#broken) return null;
    this.#inFlight = false;
    if (this.#broken) return null;
    if (operation === TransmitOp.LAST && result === this.#lastBytes) return null;
    this.#broken = true;
    return describeTransfer('send', result);
  }

  #count(index: number): void {
    this.#counters[index] = this.#counters[index]! + 1;
  }

  #append(region: Region, offset: number, length: number): void {
    const at = this.#iovecEnd++ * IOVEC_WORDS;
    const address = region.address + offset;
    const words = this.#words;
    words[at] = address >>> 0;
    words[at + 1] = (address / TWO_TO_32) >>> 0;
    words[at + 2] = length;
    words[at + 3] = 0;
    this.#messageBytes += length;
  }

  #extend(length: number): void {
    const at = (this.#iovecEnd - 1) * IOVEC_WORDS + 2;
    this.#words[at] = this.#words[at]! + length;
    this.#messageBytes += length;
  }

  #sendGathered(fd: number, handler: number, last: boolean): void {
    const words = this.#words;
    const first = this.#iovecFirst;
    const count = this.#iovecEnd - first;
    const { address } = this.#vectors;
    const single = count === 1;
    const at = this.#ring.prepare(
      single ? IoringOp.SEND : IoringOp.SENDMSG,
      last ? 0 : PART_SQE_FLAGS,
      0,
      fd,
      0,
      0,
      single ? this.#messageBytes : 1,
      last ? LAST_FLAGS : PART_FLAGS,
      handler,
      last ? TransmitOp.LAST : TransmitOp.PART,
      0,
    );
    const { sqes } = this.#ring;
    if (single) {
      sqes[at + 4] = words[first * IOVEC_WORDS]!;
      sqes[at + 5] = words[first * IOVEC_WORDS + 1]!;
    } else {
      const messageAt = IOVECS_MAX * IOVEC_WORDS + this.#messages++ * MSGHDR_WORDS;
      const iovecs = address + first * IOVEC_WORDS * 4;
      // msg_iov and msg_iovlen; names, control data and flags stay zero.
      words[messageAt + 4] = iovecs >>> 0;
      words[messageAt + 5] = (iovecs / TWO_TO_32) >>> 0;
      words[messageAt + 6] = count;
      this.#ring.pointTo(at, this.#vectors, messageAt * 4);
    }
    if (last) this.#lastBytes = this.#messageBytes;
    this.#iovecFirst = this.#iovecEnd;
    this.#messageBytes = 0;
  }

  #sendPages(fd: number, handler: number, tag: number, length: number, last: boolean): void {
    const zeroCopy = length >= this.#zeroCopyBytesMin;
    const ring = this.#ring;
    // In a registered buffer the address is an offset into the request.
    const at = ring.prepare(
      zeroCopy ? IoringOp.SEND_ZC : IoringOp.SEND,
      last ? 0 : zeroCopy ? Iosqe.IO_LINK : PART_SQE_FLAGS,
      zeroCopy ? IoringRecvsend.FIXED_BUF | IoringRecvsend.SEND_ZC_REPORT_USAGE : IoringRecvsend.FIXED_BUF,
      fd,
      0,
      0,
      length,
      last ? LAST_FLAGS : PART_FLAGS,
      handler,
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
