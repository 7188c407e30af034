/** What a client is told about an export. */
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_PAYLOAD_SIZE_BYTES_MAX,
} from '@blockwire/proto/nbd/constants.ts';
import type { ExportDescription } from '@blockwire/proto/nbd/server-handshake.ts';
import type { ExportRecord } from './messages.ts';

/** Flush covers what any connection wrote, one file being behind them all: that is CAN_MULTI_CONN. */
const FLAGS =
  NBD_FLAG_HAS_FLAGS |
  NBD_FLAG_SEND_FLUSH |
  NBD_FLAG_SEND_FUA |
  NBD_FLAG_SEND_CACHE |
  NBD_FLAG_CAN_MULTI_CONN;
const FLAGS_WITH_HOLES = NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;

export function describeExport(record: ExportRecord): ExportDescription {
  return {
    name: record.id,
    sizeBytes: record.sizeBytes,
    transmissionFlags: FLAGS | (record.canPunchHole ? FLAGS_WITH_HOLES : 0),
    // Any client works: parts of blocks are merged (engine.ts).
    blockSizeMinBytes: 1,
    blockSizePreferredBytes: 4096,
    payloadSizeMaxBytes: NBD_PAYLOAD_SIZE_BYTES_MAX,
    metaContexts: ['base:allocation'],
  };
}
