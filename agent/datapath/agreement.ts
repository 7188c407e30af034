/**
 * What all queues of a device have to see change at one moment, in shared memory: from which replicas a read counts, and
 * which of those being rebuilt have joined. Replicas are a bit each. Needed with several queues only; within one, the mirror
 * itself knows.
 *
 * Invariants:
 * - The main thread writes `readable` before it tells any queue of a membership. A queue that has not been told of a lost
 *   replica shows nothing of it any more: another queue may have completed writes without it.
 * - A write looks at `joined` once its range is its own. So of two writes of the same bytes, of whichever queues, the later
 *   one goes to every joining replica that the earlier one went to: a rebuild takes what it has seen written for the latest.
 */
const READABLE_AT = 0;
const JOINED_AT = 1;

export function createAgreement(): SharedArrayBuffer {
  return new SharedArrayBuffer(8);
}

/** A queue's view. */
export class Agreement {
  readonly #masks: Int32Array;

  constructor(shared: SharedArrayBuffer) {
    this.#masks = new Int32Array(shared);
  }

  get readable(): number {
    return Atomics.load(this.#masks, READABLE_AT);
  }

  get joined(): number {
    return Atomics.load(this.#masks, JOINED_AT);
  }
}

/** What the main thread makes of a membership, before it tells the queues; see MemberMasks. */
interface Masks {
  readonly epoch: number;
  readonly inSync: number;
  readonly rebuilding: number;
  readonly rejoined: number;
}

interface Joining {
  readonly replica: number;
  readonly sinceEpoch: number;
  readonly ready: Set<number>;
}

/** The main thread's side. */
export class AgreementWriter {
  readonly #masks: Int32Array;
  readonly #queueCount: number;
  #joining: readonly Joining[] = [];

  constructor(shared: SharedArrayBuffer, queueCount: number) {
    this.#masks = new Int32Array(shared);
    this.#queueCount = queueCount;
  }

  goBy({ epoch, inSync, rebuilding, rejoined }: Masks): void {
    Atomics.store(this.#masks, READABLE_AT, inSync);
    Atomics.and(this.#masks, JOINED_AT, rebuilding & ~rejoined);
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
    Atomics.or(this.#masks, JOINED_AT, 1 << replica);
    return true;
  }
}
