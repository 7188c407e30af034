/** Waiting for what happens by itself. */
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';

const WAIT_MS_MAX = 60_000;
const POLL_MS = 100;

/** Asks again until it is so. Throws BW_TIMEOUT with the last answer. */
export async function eventually<T>(
  ask: () => Promise<T>,
  isSo: (answer: T) => boolean,
  timeoutMs = WAIT_MS_MAX,
): Promise<T> {
  const deadlineMs = performance.now() + timeoutMs;
  for (;;) {
    const answer = await ask();
    if (isSo(answer)) return answer;
    if (performance.now() > deadlineMs) {
      throw new BlockwireError('BW_TIMEOUT', `still ${JSON.stringify(answer)}`);
    }
    await sleep(POLL_MS);
  }
}
