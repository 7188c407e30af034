/** The fences of one queue's mirror: each is passed when every write has ended that was in flight when it began. */
import { Operation, type RequestTable } from './request.ts';
import { WriteFence } from './write-fence.ts';

/** Begun for a checkpoint, by a replica that joined, by writes that are to be held. */
export type Fence = 'checkpoint' | 'join' | 'hold';

export class Fences {
  readonly #requests: RequestTable;
  /** Per tag: 1 while it is in flight. */
  readonly #inFlight: Uint8Array;
  readonly #passed: (fence: Fence) => void;
  readonly #checkpoint: WriteFence;
  readonly #join: WriteFence;
  readonly #hold: WriteFence;
  /** A write has failed: it may be on some replicas. */
  #isTainted = false;

  constructor(options: {
    requests: RequestTable;
    inFlight: Uint8Array;
    passed: (fence: Fence) => void;
  }) {
    this.#requests = options.requests;
    this.#inFlight = options.inFlight;
    this.#passed = options.passed;
    const { depth } = options.requests;
    this.#checkpoint = new WriteFence(depth);
    this.#join = new WriteFence(depth);
    this.#hold = new WriteFence(depth);
  }

  /** What was in flight when a replica joined last has ended. */
  get isJoinPassed(): boolean {
    return this.#join.isPassed;
  }

  /** Nobody joins any more. */
  dropJoin(): void {
    this.#join.begin();
  }

  /**
   * Passed at once if nothing is in flight. A checkpoint's fence never begins again once a write has failed: replicas may
   * differ there, and only the intents know where.
   */
  begin(name: Fence): void {
    if (name === 'checkpoint' && this.#isTainted) return;
    const fence = name === 'checkpoint' ? this.#checkpoint : name === 'join' ? this.#join : this.#hold;
    fence.begin();
    for (let tag = 0; tag < this.#inFlight.length; tag++) {
      if (this.#inFlight[tag] === 1 && this.#requests.operation[tag] !== Operation.READ) fence.add(tag);
    }
    if (fence.isPassed) this.#passed(name);
  }

  /** A request other than a read has ended. */
  ended(tag: number, result: number): void {
    if (result < 0 && this.#requests.operation[tag] !== Operation.FLUSH) this.#isTainted = true;
    if (this.#checkpoint.ended(tag) && !this.#isTainted) this.#passed('checkpoint');
    if (this.#join.ended(tag)) this.#passed('join');
    if (this.#hold.ended(tag)) this.#passed('hold');
  }
}
