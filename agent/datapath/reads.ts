/** Which replica each read of a queue asks. */
import type { Agreement } from './agreement.ts';
import type { RequestTable } from './request.ts';
import type { Standing } from './standing.ts';

export const NO_REPLICA = 0xff;
/** A local replica is asked until it has so many requests more in flight than another one. */
const LOCAL_AHEAD_COUNT = 4;

export class Reads {
  readonly #links: readonly { readonly inFlightCount: number }[];
  readonly #standing: Standing;
  readonly #agreement: Agreement | null;
  /** Per tag of a read: the replica asked, or NO_REPLICA while none is up. */
  readonly #replicas: Uint8Array;
  /** Per tag of a read: replicas that answered with an error. */
  readonly #failed: Uint32Array;

  constructor(options: {
    requests: RequestTable;
    links: readonly { readonly inFlightCount: number }[];
    standing: Standing;
    /** What all queues have to see change at once; null if there are no others. */
    agreement: Agreement | null;
  }) {
    this.#links = options.links;
    this.#standing = options.standing;
    this.#agreement = options.agreement;
    const { depth } = options.requests;
    this.#replicas = new Uint8Array(depth).fill(NO_REPLICA);
    this.#failed = new Uint32Array(depth);
  }

  /** What may be read from for all that the other queues know, a bit each. */
  get readable(): number {
    return this.#agreement === null ? -1 : this.#agreement.readable;
  }

  /** A new read: nobody has failed it. */
  begin(tag: number): void {
    this.#failed[tag] = 0;
  }

  /** Whom a request asks; NO_REPLICA for all but reads. */
  asked(tag: number): number {
    return this.#replicas[tag]!;
  }

  /** The request asks nobody, or not any more. */
  forget(tag: number): void {
    this.#replicas[tag] = NO_REPLICA;
  }

  noteFailure(tag: number, bit: number): void {
    this.#failed[tag] = this.#failed[tag]! | bit;
  }

  /** Whether every replica in sync has failed this read: there is nobody left to wait for. */
  isHopeless(tag: number): boolean {
    return (this.#standing.inSync & ~this.#failed[tag]!) === 0;
  }

  /** Takes the serving replica with the least in flight, a local one a little before others; or NO_REPLICA. */
  choose(tag: number): number {
    const { serving, local } = this.#standing;
    const candidates = serving & this.readable & ~this.#failed[tag]!;
    let best: number = NO_REPLICA;
    let bestCount = Number.POSITIVE_INFINITY;
    for (let replica = 0; replica < this.#links.length; replica++) {
      if ((candidates & (1 << replica)) === 0) continue;
      const ahead = (local & (1 << replica)) !== 0 ? LOCAL_AHEAD_COUNT : 0;
      const count = this.#links[replica]!.inFlightCount - ahead;
      if (count < bestCount) {
        best = replica;
        bestCount = count;
      }
    }
    this.#replicas[tag] = best;
    return best;
  }
}
