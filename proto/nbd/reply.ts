/**
 * Reply headers, encoded and decoded in place: simple replies, structured chunks and their extended form.
 * Encoders return the number of bytes written; payload data of a read follows in the caller's own buffer.
 *
 *   simple:      magic 4 | error 4 | cookie 8                                        16 bytes
 *   structured:  magic 4 | flags 2 | type 2 | cookie 8 | length 4                    20 bytes
 *   extended:    magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 8         32 bytes
 */
import {
  EXTENDED_REPLY_SIZE_BYTES,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE_BYTES,
  STRUCTURED_REPLY_SIZE_BYTES,
} from './constants.ts';
import { readUint64, writeUint64 } from './request.ts';

/** How a connection answers, as negotiated in its handshake. */
export const REPLY_SIMPLE = 0;
export const REPLY_STRUCTURED = 1;
export const REPLY_EXTENDED = 2;
export type ReplyMode = typeof REPLY_SIMPLE | typeof REPLY_STRUCTURED | typeof REPLY_EXTENDED;

/** The most bytes that one encoder below writes: extended header, offset and error fields. */
export const REPLY_HEADER_SIZE_BYTES_MAX = EXTENDED_REPLY_SIZE_BYTES + 14;

/** Writes a simple reply. `error` is a number of "Error values"; 0 is success. */
export function encodeSimpleReply(
  view: DataView,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): number {
  view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, error);
  view.setUint32(at + 8, cookieHigh);
  view.setUint32(at + 12, cookieLow);
  return SIMPLE_REPLY_SIZE_BYTES;
}

/**
 * Writes the header of one chunk, structured or extended by `mode`.
 * @param requestOffset the offset of the request that is answered; only the extended form carries it
 * @param length bytes of payload that follow the header
 */
export function encodeChunkHeader(
  view: DataView,
  at: number,
  mode: ReplyMode,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
  length: number,
): number {
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHigh);
  view.setUint32(at + 12, cookieLow);
  if (mode === REPLY_EXTENDED) {
    view.setUint32(at, NBD_EXTENDED_REPLY_MAGIC);
    writeUint64(view, at + 16, requestOffset);
    writeUint64(view, at + 24, length);
    return EXTENDED_REPLY_SIZE_BYTES;
  }
  view.setUint32(at, NBD_STRUCTURED_REPLY_MAGIC);
  view.setUint32(at + 16, length);
  return STRUCTURED_REPLY_SIZE_BYTES;
}

/** Success without payload, in any mode: a simple reply, or a NBD_REPLY_TYPE_NONE chunk in extended mode. */
export function encodeDone(
  view: DataView,
  at: number,
  mode: ReplyMode,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
): number {
  if (mode === REPLY_SIMPLE) return encodeSimpleReply(view, at, 0, cookieHigh, cookieLow);
  return encodeChunkHeader(
    view,
    at,
    mode,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_NONE,
    cookieHigh,
    cookieLow,
    requestOffset,
    0,
  );
}

/** Failure, in any mode: a simple reply with the error, or a final NBD_REPLY_TYPE_ERROR chunk without message. */
export function encodeError(
  view: DataView,
  at: number,
  mode: ReplyMode,
  error: number,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
): number {
  if (mode === REPLY_SIMPLE) return encodeSimpleReply(view, at, error, cookieHigh, cookieLow);
  const header = encodeChunkHeader(
    view,
    at,
    mode,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_ERROR,
    cookieHigh,
    cookieLow,
    requestOffset,
    6,
  );
  view.setUint32(at + header, error);
  view.setUint16(at + header + 4, 0);
  return header + 6;
}

/** Failure of a chunked read from `errorOffset` on: a NBD_REPLY_TYPE_ERROR_OFFSET chunk without message. */
export function encodeErrorOffset(
  view: DataView,
  at: number,
  mode: ReplyMode,
  flags: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
  errorOffset: number,
): number {
  const header = encodeChunkHeader(
    view,
    at,
    mode,
    flags,
    NBD_REPLY_TYPE_ERROR_OFFSET,
    cookieHigh,
    cookieLow,
    requestOffset,
    14,
  );
  view.setUint32(at + header, error);
  view.setUint16(at + header + 4, 0);
  writeUint64(view, at + header + 6, errorOffset);
  return header + 14;
}

/** Header and offset of a NBD_REPLY_TYPE_OFFSET_DATA chunk; `dataLength` bytes (not 0) follow it. */
export function encodeOffsetData(
  view: DataView,
  at: number,
  mode: ReplyMode,
  flags: number,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
  dataOffset: number,
  dataLength: number,
): number {
  const header = encodeChunkHeader(
    view,
    at,
    mode,
    flags,
    NBD_REPLY_TYPE_OFFSET_DATA,
    cookieHigh,
    cookieLow,
    requestOffset,
    dataLength + 8,
  );
  writeUint64(view, at + header, dataOffset);
  return header + 8;
}

/** A whole NBD_REPLY_TYPE_OFFSET_HOLE chunk: `holeLength` bytes (not 0) from `holeOffset` read as zeroes. */
export function encodeOffsetHole(
  view: DataView,
  at: number,
  mode: ReplyMode,
  flags: number,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
  holeOffset: number,
  holeLength: number,
): number {
  const header = encodeChunkHeader(
    view,
    at,
    mode,
    flags,
    NBD_REPLY_TYPE_OFFSET_HOLE,
    cookieHigh,
    cookieLow,
    requestOffset,
    12,
  );
  writeUint64(view, at + header, holeOffset);
  view.setUint32(at + header + 8, holeLength);
  return header + 12;
}

/**
 * Header and context id of a NBD_REPLY_TYPE_BLOCK_STATUS chunk; the caller then writes `extentCount` extents
 * with encodeBlockStatusExtent.
 */
export function encodeBlockStatusHeader(
  view: DataView,
  at: number,
  mode: ReplyMode,
  flags: number,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
  contextId: number,
  extentCount: number,
): number {
  const header = encodeChunkHeader(
    view,
    at,
    mode,
    flags,
    NBD_REPLY_TYPE_BLOCK_STATUS,
    cookieHigh,
    cookieLow,
    requestOffset,
    4 + 8 * extentCount,
  );
  view.setUint32(at + header, contextId);
  return header + 4;
}

/** One extent of a block status chunk: length in bytes (below 2^32, not 0) and its status flags. */
export function encodeBlockStatusExtent(view: DataView, at: number, length: number, status: number): number {
  view.setUint32(at, length);
  view.setUint32(at + 4, status);
  return 8;
}

/** As encodeBlockStatusHeader, for extended mode: a NBD_REPLY_TYPE_BLOCK_STATUS_EXT chunk. */
export function encodeBlockStatusHeaderExtended(
  view: DataView,
  at: number,
  mode: ReplyMode,
  flags: number,
  cookieHigh: number,
  cookieLow: number,
  requestOffset: number,
  contextId: number,
  extentCount: number,
): number {
  const header = encodeChunkHeader(
    view,
    at,
    mode,
    flags,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
    cookieHigh,
    cookieLow,
    requestOffset,
    8 + 16 * extentCount,
  );
  view.setUint32(at + header, contextId);
  view.setUint32(at + header + 4, extentCount);
  return header + 8;
}

/** One extent of a BLOCK_STATUS_EXT chunk: 64-bit length in bytes (not 0) and its status flags. */
export function encodeBlockStatusExtentExtended(
  view: DataView,
  at: number,
  length: number,
  status: number,
): number {
  writeUint64(view, at, length);
  writeUint64(view, at + 8, status);
  return 16;
}

// Decoding, for clients. The magic tells which of the three forms stands at `at`.

export function replyMagic(view: DataView, at: number): number {
  return view.getUint32(at);
}

/** The error of a simple reply; 0 is success. */
export function simpleReplyError(view: DataView, at: number): number {
  return view.getUint32(at + 4);
}

/** First half of the cookie; at the same place in all three forms. */
export function replyCookieHigh(view: DataView, at: number): number {
  return view.getUint32(at + 8);
}

export function replyCookieLow(view: DataView, at: number): number {
  return view.getUint32(at + 12);
}

export function chunkFlags(view: DataView, at: number): number {
  return view.getUint16(at + 4);
}

export function chunkType(view: DataView, at: number): number {
  return view.getUint16(at + 6);
}

/** Bytes of payload after a structured chunk's header. */
export function structuredChunkLength(view: DataView, at: number): number {
  return view.getUint32(at + 16);
}

/** Bytes of payload after an extended chunk's header, or FIELD_INVALID. */
export function extendedChunkLength(view: DataView, at: number): number {
  return readUint64(view, at + 24);
}

/** The 64-bit offset that begins the payload of OFFSET_DATA and OFFSET_HOLE, or FIELD_INVALID. */
export function chunkDataOffset(view: DataView, payloadAt: number): number {
  return readUint64(view, payloadAt);
}

/** The 32-bit error that begins the payload of the error chunks. */
export function chunkError(view: DataView, payloadAt: number): number {
  return view.getUint32(payloadAt);
}

/** The length field of an OFFSET_HOLE payload. */
export function chunkHoleLength(view: DataView, payloadAt: number): number {
  return view.getUint32(payloadAt + 8);
}
