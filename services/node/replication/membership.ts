/**
 * One replica's part in its volume's membership, without its files and sockets: what is installed, what a rebuild must
 * keep, which intents may go.
 */
import {
  admitSession,
  afterInstall,
  type Installed,
  type InstallOrder,
  type Role,
  type SessionClaim,
} from './admission.ts';
import { FreshMap } from './fresh.ts';
import { CheckpointMarks, type Mark, type NextStamp } from './marks.ts';

/** Which connections end with an installation, before it is answered. */
export type Cut = 'none' | 'olderGenerations' | 'all';

export interface Installation {
  readonly installed: Installed;
  readonly cut: Cut;
}

/** What an order makes of a replica; to be persisted, then `commit`ted. Throws what afterInstall throws. */
export function prepareInstallation(before: Installed, order: InstallOrder): Installation {
  const installed = afterInstall(before, order);
  const isNewRebuild = order.role === 'rebuilding' && order.joinedEpoch !== before.joinedEpoch;
  // A write of an earlier time, still on its way, must not arrive behind what the rebuild copies.
  const cut = isNewRebuild ? 'all' : order.generation > before.generation ? 'olderGenerations' : 'none';
  return { installed, cut };
}

/**
 * Whether an installation ends what the replica copies: another writer, another rebuild, or the end of one. The same rebuild
 * may have been ordered once more meanwhile, and what is fresh is not noted any longer.
 */
export function endsCopies(before: Installed, after: Installed): boolean {
  const isOtherRebuild = before.joinedEpoch !== after.joinedEpoch || before.role !== after.role;
  return before.generation !== after.generation || isOtherRebuild;
}

export class ReplicaMembership {
  #installed: Installed;
  #fresh: FreshMap | null = null;
  readonly #marks = new CheckpointMarks();

  constructor(installed: Installed) {
    this.#installed = installed;
    // A rebuild that the last process began is ordered again. What it copies is then read after every write from before.
    if (installed.role === 'rebuilding') this.#fresh = new FreshMap();
  }

  get installed(): Installed {
    return this.#installed;
  }

  get role(): Role {
    return this.#installed.role;
  }

  /** What was written here since the replica joined; null unless it is being rebuilt. */
  get fresh(): FreshMap | null {
    return this.#fresh;
  }

  /** Throws what afterInstall throws. */
  prepare(order: InstallOrder): Installation {
    return prepareInstallation(this.#installed, order);
  }

  /** It is durable. */
  commit({ installed }: Installation): void {
    const isRebuilding = installed.role === 'rebuilding';
    const isSame = this.#installed.joinedEpoch === installed.joinedEpoch && this.#fresh !== null;
    this.#installed = installed;
    if (!isRebuilding) this.#fresh = null;
    else if (!isSame) this.#fresh = new FreshMap();
  }

  /** Throws what admitSession throws. */
  admit(claim: SessionClaim): void {
    admitSession(this.#installed, claim);
  }

  /** A write of the writer begins to take effect. */
  noteWrite(offset: number, length: number): void {
    this.#fresh?.add(offset, length);
  }

  mark(mark: Mark, next: NextStamp): void {
    this.#marks.mark(mark, this.#installed.epoch, next);
  }

  /** Null: nothing is covered. A replica being rebuilt keeps its intents: they are part of what it lacks. */
  covered(mark: Mark): number | null {
    return this.role === 'inSync' ? this.#marks.covered(mark, this.#installed.epoch) : null;
  }
}
