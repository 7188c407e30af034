/**
 * How connections receive replies: many of them at once into own memory, or one payload at a time straight into the
 * request's pages.
 */
import { IoringCqe, IoringOp, IoringRecvsend, Iosqe, MSG_WAITALL } from '@blockwire/native/uapi/io-uring.ts';
import { SIMPLE_REPLY_SIZE_BYTES } from '@blockwire/proto/nbd/constants.ts';
import { Connection, type ConnectionOptions, ReceiveOp } from './connection.ts';
import { Operation } from './request.ts';

/** What one receive may bring: replies of 16 bytes, or small reads. */
export const REPLIES_BYTES = 64 * 1024;
export const SMALL_READS_BYTES = 256 * 1024;

/**
 * For writes and small reads: whatever has arrived is received at once. Payloads are copied from there into the requests,
 * so nothing is received again before the batch's copies are done.
 */
export class BatchConnection extends Connection {
  readonly #payload: ConnectionOptions['payload'];
  /** Received and not yet taken: [begin, end) of the receive region. */
  #begin = 0;
  #end = 0;
  #armed = false;
  /** Nothing was left in the socket: a receive would only find that out again. */
  #drained = true;

  constructor(options: ConnectionOptions, receiveBytes: number) {
    super(options, receiveBytes);
    this.#payload = options.payload;
  }

  protected override startReceiving(): void {
    this.#begin = 0;
    this.#end = 0;
    this.#armed = false;
    this.#drained = true;
    this.continueReceiving();
  }

  protected override continueReceiving(): void {
    if (this.#armed) return;
    const { receiveRegion } = this;
    // Part of a reply may be left: it moves to the front, so that the rest finds room behind it.
    if (this.#begin > 0) {
      if (this.#end > this.#begin) receiveRegion.bytes.copyWithin(0, this.#begin, this.#end);
      this.#end -= this.#begin;
      this.#begin = 0;
    }
    this.#armed = true;
    this.operationsInFlight++;
    const room = receiveRegion.sizeBytes - this.#end;
    const { ring, fd, id } = this;
    const ioprio = this.#drained ? IoringRecvsend.POLL_FIRST : 0;
    const at = ring.prepare(IoringOp.RECV, 0, ioprio, fd, 0, 0, room, 0, id, ReceiveOp.REPLY, 0);
    ring.pointTo(at, receiveRegion, this.#end);
  }

  protected override received(_payload: boolean, _data: number, result: number, flags: number): void {
    if (result <= 0) {
      this.receiveFailed(result);
      return;
    }
    this.#armed = false;
    this.#drained = (flags & IoringCqe.SOCK_NONEMPTY) === 0;
    this.#end += result;
    const end = this.#end;
    let at = this.#begin;
    while (end - at >= SIMPLE_REPLY_SIZE_BYTES) {
      const tag = this.replyTag(at);
      if (tag < 0) return;
      const error = this.replyError(at);
      let size = SIMPLE_REPLY_SIZE_BYTES;
      if (error === 0 && this.requests.operation[tag] === Operation.READ) {
        const length = this.requests.lengthBytes[tag]!;
        if (end - at < SIMPLE_REPLY_SIZE_BYTES + length) break;
        this.#payload.deliver(tag, this.receiveRegion, at + SIMPLE_REPLY_SIZE_BYTES, length);
        size += length;
      }
      this.answer(tag, error);
      at += size;
    }
    this.#begin = at;
  }
}

/**
 * For large reads: a reply's header, then its payload into the request's buffer. The receive of the next header is linked
 * to the payload's, so that a reply takes one trip through the ring.
 */
export class DirectConnection extends Connection {
  readonly #payload: ConnectionOptions['payload'];
  /** READ_FIXED instead of RECV: it transfers what is there, and breaks links when that is not all. */
  readonly #byRead: boolean;
  /** Bytes of the payload that is being read so far. */
  #readBytes = 0;

  constructor(options: ConnectionOptions) {
    super(options, 0);
    this.#payload = options.payload;
    this.#byRead = options.ladder.receive === 'readFixed';
  }

  protected override startReceiving(): void {
    this.#receiveHeader();
  }

  protected override continueReceiving(): void {}

  protected override received(payload: boolean, data: number, result: number): void {
    if (payload) this.#payloadReceived(data, result);
    else this.#headerReceived(result);
  }

  #headerReceived(result: number): void {
    if (result !== SIMPLE_REPLY_SIZE_BYTES) {
      this.receiveFailed(result);
      return;
    }
    const tag = this.replyTag(0);
    if (tag < 0) return;
    const error = this.replyError(0);
    // The answer to a mark has no payload either.
    if (error !== 0 || this.requests.operation[tag] !== Operation.READ) {
      this.answer(tag, error);
      this.#receiveHeader();
    } else if (this.#byRead && !this.#payload.isOwn(this.requests.lengthBytes[tag]!)) {
      this.#readBytes = 0;
      this.#readPayload(tag);
    } else {
      this.ring.reserve(2);
      this.#receivePayload(tag);
      this.#receiveHeader();
    }
  }

  #payloadReceived(tag: number, result: number): void {
    const payload = this.#payload;
    const length = this.requests.lengthBytes[tag]!;
    if (this.#byRead && !payload.isOwn(length)) {
      if (result <= 0) {
        this.receiveFailed(result);
        return;
      }
      this.#readBytes += result;
      if (this.#readBytes < length) {
        this.#readPayload(tag);
        return;
      }
      this.answer(tag, 0);
      this.#receiveHeader();
    } else if (result !== length) {
      this.receiveFailed(result);
    } else {
      if (payload.isOwn(length)) payload.deliver(tag, payload.own!, tag * payload.strideBytes, length);
      this.answer(tag, 0);
    }
  }

  #receiveHeader(): void {
    this.operationsInFlight++;
    this.ring.receive(
      this.fd,
      this.receiveRegion,
      0,
      SIMPLE_REPLY_SIZE_BYTES,
      MSG_WAITALL,
      0,
      this.id,
      ReceiveOp.REPLY,
      0,
    );
  }

  /** Linked to what is prepared next. */
  #receivePayload(tag: number): void {
    this.operationsInFlight++;
    const length = this.requests.lengthBytes[tag]!;
    const payload = this.#payload;
    const own = payload.isOwn(length);
    const { ring, fd, id } = this;
    const at = ring.prepare(
      IoringOp.RECV,
      Iosqe.IO_LINK,
      own ? 0 : IoringRecvsend.FIXED_BUF,
      fd,
      0,
      0,
      length,
      MSG_WAITALL,
      id,
      ReceiveOp.PAYLOAD,
      tag,
    );
    if (own) ring.pointTo(at, payload.own!, tag * payload.strideBytes);
    // In a registered buffer the address is an offset into the request.
    else ring.sqes[at + 10] = tag; // buf_index
  }

  #readPayload(tag: number): void {
    this.operationsInFlight++;
    const { ring, fd, id } = this;
    const done = this.#readBytes;
    const left = this.requests.lengthBytes[tag]! - done;
    const at = ring.prepare(IoringOp.READ_FIXED, 0, 0, fd, 0, done, left, 0, id, ReceiveOp.PAYLOAD, tag);
    ring.sqes[at + 10] = tag; // buf_index
  }
}
