/**
 * The request whose header is being looked at: one at a time for each worker, its fields valid until the next `read`.
 * An object rather than parameters, because offsets that pass calls are allocated (block-math.ts).
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { REPLY_EXTENDED, type ReplyMode } from '@blockwire/proto/nbd/reply.ts';
import {
  copyRequestRange,
  FIELD_INVALID,
  requestCookieHigh,
  requestCookieLow,
  requestFlags,
  requestMagic,
  requestType,
} from '@blockwire/proto/nbd/request.ts';
import { BLOCK_MASK, withinBlock } from './block-math.ts';
import type { Slots } from './slots.ts';
import type { Volume } from './volume.ts';

export class Incoming {
  extended = false;
  type = 0;
  flags = 0;
  hasPayload = false;
  headerBytes = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** Offset and length: typed, because a field of an object would get a new number each time. */
  readonly #range = new Float64Array(2);

  /** Bytes of a request's header in this mode. */
  static headerBytes(mode: ReplyMode): number {
    return mode === REPLY_EXTENDED ? nbd.EXTENDED_REQUEST_SIZE_BYTES : nbd.REQUEST_SIZE_BYTES;
  }

  /** Bytes, or FIELD_INVALID. */
  get offset(): number {
    return this.#range[0]!;
  }

  /** Bytes, or FIELD_INVALID. */
  get length(): number {
    return this.#range[1]!;
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
    copyRequestRange(view, at, extended, this.#range);
    this.headerBytes = extended ? nbd.EXTENDED_REQUEST_SIZE_BYTES : nbd.REQUEST_SIZE_BYTES;
    this.hasPayload = extended
      ? (this.flags & nbd.NBD_CMD_FLAG_PAYLOAD_LEN) !== 0
      : this.type === nbd.NBD_CMD_WRITE;
    return true;
  }

  /** Bytes of the whole blocks that hold its range, of a READ or WRITE that is not refused: `spanOf` without a call. */
  get spanBytes(): number {
    const head = this.#range[0]! & BLOCK_MASK;
    return (head + this.#range[1]! + BLOCK_MASK) & ~BLOCK_MASK;
  }

  /** Where within its first block it begins. */
  get head(): number {
    return withinBlock(this.#range[0]!);
  }

  /** Whether it begins or ends within a block. */
  get isPartial(): boolean {
    return withinBlock(this.#range[0]!) !== 0 || withinBlock(this.#range[0]! + this.#range[1]!) !== 0;
  }

  /** Whether it does not lie within the volume. */
  isOutside(volume: Volume): boolean {
    const offset = this.#range[0]!;
    const length = this.#range[1]!;
    return offset === FIELD_INVALID || length === FIELD_INVALID || length > volume.sizeBytes - offset;
  }

  /** Fills a slot in. */
  copyTo(slots: Slots, slot: number): void {
    slots.type[slot] = this.type;
    slots.flags[slot] = this.flags;
    slots.cookieHigh[slot] = this.cookieHigh;
    slots.cookieLow[slot] = this.cookieLow;
    slots.offset[slot] = this.#range[0]!;
    slots.length[slot] = this.#range[1]!;
  }

  has(flag: number): boolean {
    return (this.flags & flag) !== 0;
  }

  /** READ or WRITE. */
  get movesData(): boolean {
    return this.type === nbd.NBD_CMD_READ || this.type === nbd.NBD_CMD_WRITE;
  }
}
