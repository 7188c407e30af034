/** A promise that must settle in time. */
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';

/** @param complaint says what did not happen. Throws BW_TIMEOUT with it. */
export async function within<T>(promise: Promise<T>, milliseconds: number, complaint: string): Promise<T> {
  const timer = new AbortController();
  const late = sleep(milliseconds, undefined, { signal: timer.signal }).then(
    () => {
      throw new BlockwireError('BW_TIMEOUT', `${complaint} within ${milliseconds / 1000} s`);
    },
    () => new Promise<never>(() => {}),
  );
  try {
    return await Promise.race([promise, late]);
  } finally {
    timer.abort();
  }
}
