/**
 * What all queues of a device have to see change at one moment, in shared memory: from which replicas a read counts, which of
 * those being rebuilt have joined, and whether what was acknowledged may be gone. Replicas are a bit each. Needed with several queues only; within one, the mirror
 * itself knows.
 *
 * Invariants:
 * - The main thread writes `readable` before it tells any queue of a membership. A queue that has not been told of a lost
 *   replica shows nothing of it any more: another queue may have completed writes without it.
 * - A write looks at `joined` once its range is its own. So of two writes of the same bytes, of whichever queues, the later
 *   one goes to every joining replica that the earlier one went to: a rebuild takes what it has seen written for the latest.
 * - The main thread counts a loss before it tells any queue. A queue that has not been told completes no write any more as it
 *   was acknowledged: another queue's flush may have said by then that it is gone, and the next one says that all is well.
 */
const READABLE_AT = 0;
const JOINED_AT = 1;
const LOSSES_AT = 2;

export function createAgreement(): SharedArrayBuffer {
  return new SharedArrayBuffer(12);
}

/** A queue's view. */
export class Agreement {
  readonly #words: Int32Array;

  constructor(shared: SharedArrayBuffer) {
    this.#words = new Int32Array(shared);
  }

  get readable(): number {
    return Atomics.load(this.#words, READABLE_AT);
  }

  get joined(): number {
    return Atomics.load(this.#words, JOINED_AT);
  }

  /** How often what was acknowledged and not flushed may have been lost. */
  get lossCount(): number {
    return Atomics.load(this.#words, LOSSES_AT);
  }
}

/** What the main thread makes of a membership, before it tells the queues; see MemberMasks. */
interface Masks {
  readonly epoch: number;
  readonly inSync: number;
  readonly rebuilding: number;
  readonly rejoined: number;
  /** What was acknowledged and not flushed may be lost. */
  readonly hasLoss: boolean;
}

interface Joining {
  readonly replica: number;
  readonly sinceEpoch: number;
  readonly ready: Set<number>;
}

/** The main thread's side. */
export class AgreementWriter {
  readonly #words: Int32Array;
  readonly #queueCount: number;
  #joining: readonly Joining[] = [];

  constructor(shared: SharedArrayBuffer, queueCount: number) {
    this.#words = new Int32Array(shared);
    this.#queueCount = queueCount;
  }

  goBy({ epoch, inSync, rebuilding, rejoined, hasLoss }: Masks): void {
    if (hasLoss) Atomics.add(this.#words, LOSSES_AT, 1);
    Atomics.store(this.#words, READABLE_AT, inSync);
    Atomics.and(this.#words, JOINED_AT, rebuilding & ~rejoined);
    const replicas = Array.from({ length: 32 }, (_, i) => i).filter((i) => ((rebuilding >>> i) & 1) === 1);
    this.#joining = replicas.map((replica) => {
      const before = this.#joining.find((joining) => joining.replica === replica);
      const isSame = before !== undefined && ((rejoined >>> replica) & 1) === 0;
      return isSame ? before : { replica, sinceEpoch: epoch, ready: new Set() };
    });
  }

  /**
   * A queue that goes by `epoch` has its link to a replica that is to join. True when it was the last one: the replica has
   * joined, and the queues are to be told, as those that do not write would not see it.
   */
  ready(queueId: number, replica: number, epoch: number): boolean {
    const joining = this.#joining.find((candidate) => candidate.replica === replica);
    if (joining === undefined || epoch < joining.sinceEpoch) return false;
    joining.ready.add(queueId);
    if (joining.ready.size < this.#queueCount) return false;
    Atomics.or(this.#words, JOINED_AT, 1 << replica);
    return true;
  }
}
