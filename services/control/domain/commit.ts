/** Read, decide, commit; again when another change came between. The only way the domain writes. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Change, MetadataStore } from '../store/store.ts';
import type { ControlEvent } from './events.ts';

/** Every round in which we lose, another commit won; so this bounds contention, not progress. */
const ROUNDS_MAX = 200;

export interface Plan<T> {
  readonly changes: readonly Change[];
  readonly result: T;
  /** What the changes mean; recorded with them. */
  readonly events?: readonly ControlEvent[];
}

/**
 * Runs `decide`, which reads and returns changes (none: nothing to do) and a result, until its changes commit.
 * What `decide` throws goes to the caller. Throws BW_CONFLICT when others win `ROUNDS_MAX` times in a row.
 */
export async function commitRound<T>(store: MetadataStore, decide: () => Promise<Plan<T>>): Promise<T> {
  for (let round = 0; round < ROUNDS_MAX; round++) {
    const { changes, result, events = [] } = await decide();
    if (changes.length === 0) return result;
    const outcome = await store.commit(changes, events);
    if (outcome.committed) return result;
  }
  throw new BlockwireError('BW_CONFLICT', 'too many changes at once to the same records; try again');
}
