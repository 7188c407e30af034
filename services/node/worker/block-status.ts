/**
 * NBD_CMD_BLOCK_STATUS: which parts of a range are allocated, changed since an epoch, or under intent. The answer, one
 * chunk for each selected context, is written into the request's own block and sent from there. Not a hot path: it asks
 * the file system where data and holes are, a bounded number of times.
 */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import {
  encodeBlockStatusExtent,
  encodeBlockStatusExtentExtended,
  encodeBlockStatusHeader,
  encodeBlockStatusHeaderExtended,
  REPLY_EXTENDED,
  type ReplyMode,
} from '@blockwire/proto/nbd/reply.ts';
import { CHANGED_SINCE_PREFIX, INTENT_CONTEXT } from '../data/export.ts';
import { REGION_SIZE_BYTES } from '../store/region-table.ts';
import type { NodeIo } from './node-io.ts';
import type { Volume } from './volume.ts';

export const ALLOCATION = 0;
export const CHANGED_SINCE = 1;
export const INTENT = 2;

/** A context that a connection has selected. */
export interface StatusContext {
  readonly id: number;
  readonly kind: typeof ALLOCATION | typeof CHANGED_SINCE | typeof INTENT;
  /** Of CHANGED_SINCE. */
  readonly epoch: number;
}

/** Bytes of the block that an answer needs. */
export const STATUS_BLOCK_BYTES = 16 * 1024;
export const STATUS_CONTEXTS_MAX = 8;
/** Extents for each context: with eight contexts in extended form they fit the block. */
const EXTENTS_MAX = 96;
/** Regions that one request looks at in each context. */
const REGIONS_MAX = 65_536;
/** In a compact reply an extent is below 2^32 bytes, and whole blocks. */
const EXTENT_BYTES_MAX = 2 ** 32 - 4096;
const HOLE = nbd.NBD_STATE_HOLE | nbd.NBD_STATE_ZERO;

/** The contexts behind the names that a handshake has agreed on. */
export function statusContexts(
  selected: readonly { readonly id: number; readonly name: string }[],
): StatusContext[] {
  return selected.map(({ id, name }) => {
    if (name === INTENT_CONTEXT) return { id, kind: INTENT, epoch: 0 };
    if (!name.startsWith(CHANGED_SINCE_PREFIX)) return { id, kind: ALLOCATION, epoch: 0 };
    return { id, kind: CHANGED_SINCE, epoch: Number(name.slice(CHANGED_SINCE_PREFIX.length)) };
  });
}

interface Extent {
  readonly end: number;
  readonly status: number;
}

export interface StatusRequest {
  readonly volume: Volume;
  readonly contexts: readonly StatusContext[];
  readonly mode: ReplyMode;
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offset: number;
  /** Not 0, and within the volume. */
  readonly length: number;
  /** NBD_CMD_FLAG_REQ_ONE: one extent for each context, not beyond the range. */
  readonly one: boolean;
}

/** Writes the whole reply at `at`; returns its bytes. */
export function encodeBlockStatus(io: NodeIo, at: number, request: StatusRequest): number {
  const { volume, contexts, mode, offset, length, one, cookieHigh, cookieLow } = request;
  const { view } = io.memory;
  const extended = mode === REPLY_EXTENDED;
  let position = at;
  for (const [index, { id, kind, epoch }] of contexts.entries()) {
    const flags = index === contexts.length - 1 ? nbd.NBD_REPLY_FLAG_DONE : 0;
    const extents: number[] = [];
    const end = offset + length;
    for (let from = offset, count = one ? 1 : EXTENTS_MAX; from < end && count > 0; count--) {
      const extent =
        kind === ALLOCATION ? allocated(io, volume, from, end) : inRegions(volume, kind, epoch, from, end);
      const to = Math.min(extent.end, extended ? end : from + EXTENT_BYTES_MAX);
      extents.push(to - from, extent.status);
      from = to;
    }
    const header = extended ? encodeBlockStatusHeaderExtended : encodeBlockStatusHeader;
    const body = extended ? encodeBlockStatusExtentExtended : encodeBlockStatusExtent;
    const count = extents.length / 2;
    position += header(view, position, mode, flags, cookieHigh, cookieLow, offset, id, count);
    for (let i = 0; i < extents.length; i += 2) {
      position += body(view, position, extents[i]!, extents[i + 1]!);
    }
  }
  return position - at;
}

/** The stretch of data, or the hole, that begins at `from`; "data" where the file system cannot tell. */
function allocated(io: NodeIo, volume: Volume, from: number, end: number): Extent {
  const data = io.seekData(volume.fd, from);
  const ENXIO = -6;
  if (data === ENXIO) return { end, status: HOLE };
  if (data < 0) return { end, status: 0 };
  if (data > from) return { end: Math.min(data, end), status: HOLE };
  const hole = io.seekHole(volume.fd, from);
  return { end: hole > from ? Math.min(hole, end) : end, status: 0 };
}

function inRegions(volume: Volume, kind: number, epoch: number, from: number, end: number): Extent {
  const { table } = volume.integrity;
  const is = (region: number): boolean =>
    kind === INTENT ? table.hasIntent(region) : table.changedSince(region, epoch);
  const first = Math.floor(from / REGION_SIZE_BYTES);
  const limit = Math.min(Math.ceil(end / REGION_SIZE_BYTES), first + REGIONS_MAX);
  const state = is(first);
  let region = first + 1;
  while (region < limit && is(region) === state) region++;
  return { end: Math.min(end, region * REGION_SIZE_BYTES), status: state ? 1 : 0 };
}
