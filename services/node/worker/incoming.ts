/**
 * The request whose header is being looked at: one at a time for each worker, its fields valid until the next `read`.
 * An object rather than parameters, because offsets that pass calls are allocated (block-math.ts).
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { REPLY_EXTENDED, type ReplyMode } from '@blockwire/proto/nbd/reply.ts';
import {
  extendedRequestLength,
  requestCookieHigh,
  requestCookieLow,
  requestFlags,
  requestLength,
  requestMagic,
  requestOffset,
  requestType,
} from '@blockwire/proto/nbd/request.ts';

export class Incoming {
  extended = false;
  type = 0;
  flags = 0;
  hasPayload = false;
  headerBytes = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** In bytes, or FIELD_INVALID. */
  offset = 0;
  length = 0;

  /** Bytes of a request's header in this mode. */
  static headerBytes(mode: ReplyMode): number {
    return mode === REPLY_EXTENDED ? nbd.EXTENDED_REQUEST_SIZE_BYTES : nbd.REQUEST_SIZE_BYTES;
  }

  /** False: there is no request at `at`. */
  read(view: DataView, at: number, mode: ReplyMode): boolean {
    const extended = mode === REPLY_EXTENDED;
    const magic = extended ? nbd.NBD_EXTENDED_REQUEST_MAGIC : nbd.NBD_REQUEST_MAGIC;
    if (requestMagic(view, at) !== magic) return false;
    this.extended = extended;
    this.type = requestType(view, at);
    this.flags = requestFlags(view, at);
    this.cookieHigh = requestCookieHigh(view, at) | 0;
    this.cookieLow = requestCookieLow(view, at) | 0;
    this.offset = requestOffset(view, at);
    this.length = extended ? extendedRequestLength(view, at) : requestLength(view, at);
    this.headerBytes = extended ? nbd.EXTENDED_REQUEST_SIZE_BYTES : nbd.REQUEST_SIZE_BYTES;
    this.hasPayload = extended
      ? (this.flags & nbd.NBD_CMD_FLAG_PAYLOAD_LEN) !== 0
      : this.type === nbd.NBD_CMD_WRITE;
    return true;
  }

  has(flag: number): boolean {
    return (this.flags & flag) !== 0;
  }

  /** READ or WRITE. */
  get movesData(): boolean {
    return this.type === nbd.NBD_CMD_READ || this.type === nbd.NBD_CMD_WRITE;
  }
}
