/**
 * Request headers, decoded and encoded in place ("Request message" of the specification). No allocation, no
 * bigint: a field is a function of a DataView and a position; 64-bit values are numbers below 2^53.
 *
 *   compact:   magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 4      28 bytes
 *   extended:  magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 8      32 bytes
 */
import { NBD_EXTENDED_REQUEST_MAGIC, NBD_REQUEST_MAGIC } from './constants.ts';

/** What a decoder answers for a 64-bit field of 2^53 or more: no export is that large. */
export const FIELD_INVALID = -1;

const HIGH_WORD_MAX = 0x1fffff;
const TWO_POW_32 = 0x1_0000_0000;

/** A big-endian 64-bit field as a number, or FIELD_INVALID from 2^53 on. */
export function readUint64(view: DataView, at: number): number {
  const high = view.getUint32(at);
  if (high > HIGH_WORD_MAX) return FIELD_INVALID;
  return high * TWO_POW_32 + view.getUint32(at + 4);
}

/** Writes a safe integer (0 to 2^53 - 1) as a big-endian 64-bit field. */
export function writeUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / TWO_POW_32));
  view.setUint32(at + 4, value % TWO_POW_32);
}

export function requestMagic(view: DataView, at: number): number {
  return view.getUint32(at);
}

export function requestFlags(view: DataView, at: number): number {
  return view.getUint16(at + 4);
}

export function requestType(view: DataView, at: number): number {
  return view.getUint16(at + 6);
}

/** First half of the client's opaque cookie. */
export function requestCookieHigh(view: DataView, at: number): number {
  return view.getUint32(at + 8);
}

export function requestCookieLow(view: DataView, at: number): number {
  return view.getUint32(at + 12);
}

/** Bytes, or FIELD_INVALID. */
export function requestOffset(view: DataView, at: number): number {
  return readUint64(view, at + 16);
}

/** Bytes: the 32-bit length of a compact request. */
export function requestLength(view: DataView, at: number): number {
  return view.getUint32(at + 24);
}

/** Bytes, or FIELD_INVALID: the 64-bit length of an extended request. */
export function extendedRequestLength(view: DataView, at: number): number {
  return readUint64(view, at + 24);
}

/**
 * Offset and length of a request, compact or extended, into `to[0]` and `to[1]`: bytes, or FIELD_INVALID. For hot paths: a
 * number of 2^31 or more is allocated whenever a function that is not inlined returns it.
 */
export function copyRequestRange(view: DataView, at: number, extended: boolean, to: Float64Array): void {
  // Two stores each, not a choice of values: that would be allocated too.
  const offsetHigh = view.getUint32(at + 16);
  if (offsetHigh > HIGH_WORD_MAX) to[0] = FIELD_INVALID;
  else to[0] = offsetHigh * TWO_POW_32 + view.getUint32(at + 20);
  if (!extended) {
    to[1] = view.getUint32(at + 24);
    return;
  }
  const lengthHigh = view.getUint32(at + 24);
  if (lengthHigh > HIGH_WORD_MAX) to[1] = FIELD_INVALID;
  else to[1] = lengthHigh * TWO_POW_32 + view.getUint32(at + 28);
}

/** Writes the 28-byte header of a request. Offset and length in bytes. */
export function encodeRequest(
  view: DataView,
  at: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
  length: number,
): void {
  encodeCommon(view, at, NBD_REQUEST_MAGIC, flags, type, cookieHigh, cookieLow, offset);
  view.setUint32(at + 24, length);
}

/** Writes the 32-byte header of a request under NBD_OPT_EXTENDED_HEADERS. Offset and length in bytes. */
export function encodeExtendedRequest(
  view: DataView,
  at: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
  length: number,
): void {
  encodeCommon(view, at, NBD_EXTENDED_REQUEST_MAGIC, flags, type, cookieHigh, cookieLow, offset);
  writeUint64(view, at + 24, length);
}

function encodeCommon(
  view: DataView,
  at: number,
  magic: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
): void {
  view.setUint32(at, magic);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHigh);
  view.setUint32(at + 12, cookieLow);
  writeUint64(view, at + 16, offset);
}
