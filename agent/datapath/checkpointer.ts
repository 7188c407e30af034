/**
 * When a device sends MARK and CHECKPOINT: at every tick that finds writes since the last mark, and once more after the last
 * of them; one mark at a time. One per device, whatever the number of its queues:
 *
 *   writes ──▶ tick: each queue sends MARK n on its connections, and fences its writes ──▶ the last queue's fence has passed:
 *              every write that was sent before MARK n is acknowledged ──▶ CHECKPOINT n
 *
 * A mark carries the epoch that the device goes by. A new membership ends the one under way: the nodes would not count it,
 * and a fence of it that passes late says nothing about the next one. Numbers rise over all writers of a volume: the next
 * one may go by the same epoch.
 */

/** More than a writer sends. */
const MARKS_PER_GENERATION = 2 ** 32;

export interface CheckpointHost {
  /**
   * Each queue sends MARK on every connection that carries writes, behind what it sent before, begins each later connection
   * with it, and begins its fence, which ends in `fencePassed`.
   */
  mark(number: number, epoch: number): void;
  sendCheckpoint(number: number, epoch: number): void;
  queueCount(): number;
}

export class Checkpointer {
  readonly #host: CheckpointHost;
  /** Queues whose fence of the mark under way has passed. */
  readonly #passed = new Set<number>();
  #epoch: number;
  #number: number;
  #isWaiting = false;
  /** A write that is at work when its mark arrives is counted with the next one. */
  #marksLeft = 0;

  constructor(options: {
    readonly generation: number;
    readonly epoch: number;
    readonly host: CheckpointHost;
  }) {
    this.#number = options.generation * MARKS_PER_GENERATION;
    this.#epoch = options.epoch;
    this.#host = options.host;
  }

  noteWrite(): void {
    this.#marksLeft = 2;
  }

  /** A membership that the device goes by from now on. Its first tick marks, written or not: intents may be left. */
  membership(epoch: number): void {
    if (epoch === this.#epoch) return;
    this.#epoch = epoch;
    this.#isWaiting = false;
    this.#marksLeft = 2;
  }

  tick(): void {
    if (this.#isWaiting || this.#marksLeft === 0) return;
    this.#marksLeft--;
    this.#isWaiting = true;
    this.#number++;
    this.#passed.clear();
    this.#host.mark(this.#number, this.#epoch);
  }

  /** Of one queue. @param number the mark that the queue was told last */
  fencePassed(queueId: number, number: number): void {
    if (!this.#isWaiting || number !== this.#number) return;
    this.#passed.add(queueId);
    if (this.#passed.size < this.#host.queueCount()) return;
    this.#isWaiting = false;
    this.#host.sendCheckpoint(this.#number, this.#epoch);
  }
}
