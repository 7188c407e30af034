/** One process per data directory: flock of the file `lock` in it. */
import { closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '@blockwire/native/native.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';

/** Takes the lock; returns what gives it back. Throws BW_CONFLICT when another process has it. */
export function lockDataDirectory(directory: string): () => void {
  const fd = openSync(join(directory, 'lock'), constants.O_RDWR | constants.O_CREAT, 0o600);
  if (native.flock(fd)) return () => closeSync(fd);
  closeSync(fd);
  throw new BlockwireError('BW_CONFLICT', `another node uses ${directory}; give each its own --data-dir`);
}
