/** Which requests must not be done: the rules of "Request types", "Command flags" and "Error values". */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { REPLY_EXTENDED, REPLY_SIMPLE } from '@blockwire/proto/nbd/reply.ts';
import { FIELD_INVALID } from '@blockwire/proto/nbd/request.ts';
import { PART_BYTES_MAX } from './block-math.ts';
import type { Connection } from './connection.ts';
import type { Incoming } from './incoming.ts';

/** Flags that each command knows. FUA is accepted on every one ("Command flags"). */
const ALLOWED_FLAGS = new Uint16Array(256).fill(0);
ALLOWED_FLAGS[nbd.NBD_CMD_READ] = nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_DF;
ALLOWED_FLAGS[nbd.NBD_CMD_WRITE] = nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_PAYLOAD_LEN;
ALLOWED_FLAGS[nbd.NBD_CMD_FLUSH] = nbd.NBD_CMD_FLAG_FUA;
ALLOWED_FLAGS[nbd.NBD_CMD_TRIM] = nbd.NBD_CMD_FLAG_FUA;
ALLOWED_FLAGS[nbd.NBD_CMD_CACHE] = nbd.NBD_CMD_FLAG_FUA;
ALLOWED_FLAGS[nbd.NBD_CMD_WRITE_ZEROES] =
  nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_NO_HOLE | nbd.NBD_CMD_FLAG_FAST_ZERO;
ALLOWED_FLAGS[nbd.NBD_CMD_BLOCK_STATUS] = nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_REQ_ONE;

/** The NBD error that a request is refused with; NBD_OK when it may be done. */
export function refusalOf(request: Incoming, connection: Connection): number {
  const { type, hasPayload } = request;
  if (type > nbd.NBD_CMD_BLOCK_STATUS) return refusalOfOwn(request, connection);
  if (request.has(~ALLOWED_FLAGS[type]!) || hasPayload !== (type === nbd.NBD_CMD_WRITE)) {
    return nbd.NBD_EINVAL;
  }
  if (request.has(nbd.NBD_CMD_FLAG_DF) && connection.replyMode === REPLY_SIMPLE) return nbd.NBD_EINVAL;
  if (request.has(nbd.NBD_CMD_FLAG_PAYLOAD_LEN) && connection.replyMode !== REPLY_EXTENDED) {
    return nbd.NBD_EINVAL;
  }
  if (type === nbd.NBD_CMD_FLUSH) return nbd.NBD_OK;
  if (type === nbd.NBD_CMD_BLOCK_STATUS && connection.contexts.length === 0) return nbd.NBD_EINVAL;
  if (request.movesData && request.length > nbd.NBD_PAYLOAD_SIZE_BYTES_MAX) return nbd.NBD_EINVAL;
  const volume = connection.volume!;
  const { readOnly } = connection;
  const writes = type === nbd.NBD_CMD_WRITE || type === nbd.NBD_CMD_WRITE_ZEROES;
  if ((writes || type === nbd.NBD_CMD_TRIM) && readOnly) return nbd.NBD_EPERM;
  if (request.isOutside(volume)) return writes ? nbd.NBD_ENOSPC : nbd.NBD_EINVAL;
  if (request.has(nbd.NBD_CMD_FLAG_DF) && request.spanBytes > PART_BYTES_MAX) return nbd.NBD_EOVERFLOW;
  const punches = type === nbd.NBD_CMD_WRITE_ZEROES || type === nbd.NBD_CMD_TRIM;
  return punches && !volume.canPunchHole ? nbd.NBD_EINVAL : nbd.NBD_OK;
}

/** MARK and CHECKPOINT: only from the volume's writer. */
function refusalOfOwn(request: Incoming, connection: Connection): number {
  const { type, hasPayload, offset, length } = request;
  const isKnown = type === nbd.NBD_CMD_BLOCKWIRE_MARK || type === nbd.NBD_CMD_BLOCKWIRE_CHECKPOINT;
  const isWriter = connection.session?.claim?.kind === 'writer';
  const isValid = offset !== FIELD_INVALID && length !== FIELD_INVALID && request.flags === 0 && !hasPayload;
  return isKnown && isWriter && isValid ? nbd.NBD_OK : nbd.NBD_EINVAL;
}

/** Whether a refused request's payload is more than was agreed on: that ends the connection ("Request message"). */
export function hasExcessivePayload(request: Incoming): boolean {
  const { hasPayload, extended, length } = request;
  return hasPayload && (length === FIELD_INVALID || (extended && length > nbd.NBD_PAYLOAD_SIZE_BYTES_MAX));
}
