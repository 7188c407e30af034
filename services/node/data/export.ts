/** What a client is told about an export. */
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_PAYLOAD_SIZE_BYTES_MAX,
} from '@blockwire/proto/nbd/constants.ts';
import type { ExportDescription } from '@blockwire/proto/nbd/server-handshake.ts';
import type { Session } from '../replication/session.ts';
import type { ExportRecord } from './messages.ts';

/** Flush covers what any connection wrote, one file being behind them all: that is CAN_MULTI_CONN. */
const FLAGS =
  NBD_FLAG_HAS_FLAGS |
  NBD_FLAG_SEND_FLUSH |
  NBD_FLAG_SEND_FUA |
  NBD_FLAG_SEND_CACHE |
  NBD_FLAG_CAN_MULTI_CONN;
const FLAGS_WITH_HOLES = NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;

/** Contexts of our own. Status 1: yes; for every region of 1 MiB. */
export const INTENT_CONTEXT = 'blockwire:intent';
export const CHANGED_SINCE_PREFIX = 'blockwire:changed-since/';
const CHANGED_SINCE = /^blockwire:changed-since\/(0|[1-9]\d{0,9})$/;

export function describeExport(record: ExportRecord, session: Session): ExportDescription {
  return {
    name: record.id,
    sizeBytes: record.sizeBytes,
    transmissionFlags: flagsOf(record, session),
    // Any client works: parts of blocks are merged (engine.ts).
    blockSizeMinBytes: 1,
    blockSizePreferredBytes: 4096,
    payloadSizeMaxBytes: NBD_PAYLOAD_SIZE_BYTES_MAX,
    metaContexts: ['base:allocation', INTENT_CONTEXT],
    acceptsContext: (name) => CHANGED_SINCE.test(name),
  };
}

function flagsOf(record: ExportRecord, { mayWrite }: Session): number {
  if (!mayWrite) {
    return NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN;
  }
  return FLAGS | (record.canPunchHole ? FLAGS_WITH_HOLES : 0);
}
