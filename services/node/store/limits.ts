/** What names, sizes and epochs of replicas may be, and what a failed call of the file system is to the control plane. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { EPOCH_MAX } from './region-table.ts';

/** Also an export name and a directory: no path, no hidden file, none of NBD's limits. */
const ID_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** Throws BW_INVALID_ARGUMENT, like the others. */
export function requireName(name: string, what: string): void {
  if (!ID_PATTERN.test(name)) throw new BlockwireError('BW_INVALID_ARGUMENT', `'${name}' is no ${what}`);
}

export function requireSize(sizeBytes: number): void {
  if (Number.isSafeInteger(sizeBytes) && sizeBytes > 0) return;
  throw new BlockwireError('BW_INVALID_ARGUMENT', 'a volume has at least one byte');
}

export function requireEpoch(epoch: number): void {
  if (epoch > EPOCH_MAX) throw new BlockwireError('BW_INVALID_ARGUMENT', `epochs end at ${EPOCH_MAX}`);
}

/** @param doing what failed, as in `creating a replica of vol-…` */
export function ioError(error: unknown, doing: string): BlockwireError {
  if (error instanceof BlockwireError) return error;
  const code = (error as NodeJS.ErrnoException).code;
  const message = `${doing} failed: ${error instanceof Error ? error.message : String(error)}`;
  return new BlockwireError(code === 'ENOSPC' ? 'BW_NOT_ENOUGH_SPACE' : 'BW_IO', message, { cause: error });
}
