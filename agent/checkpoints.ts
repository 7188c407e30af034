/**
 * The checkpoints of one device: the one Checkpointer over all of its queues. Whether there were writes is read from the
 * queues' counters at each tick, so they cost nothing per request.
 *
 *   tick ──▶ MARK n in every queue, on its connections for writes ──▶ every queue's fence has passed ──▶ CHECKPOINT n by queue 0
 */
import { Checkpointer } from './datapath/checkpointer.ts';
import type { ToWorker } from './datapath/messages.ts';

/** How long intents of what is on all replicas stay: what a writer's death makes the replicas compare. */
export const CHECKPOINT_MS = 1000;

export interface CheckpointQueues {
  count(): number;
  post(message: ToWorker): void;
  postTo(queueId: number, message: ToWorker): void;
}

export class Checkpoints {
  readonly #writeCount: () => number;
  readonly #inFlightCount: () => number;
  readonly #checkpointer: Checkpointer;
  #seenWriteCount = 0;
  #sentCount = 0;

  /**
   * @param options.writeCount requests that write, taken by all queues so far
   * @param options.inFlightCount requests of all queues that were taken and not completed
   */
  constructor(options: {
    readonly queues: CheckpointQueues;
    readonly generation: number;
    readonly epoch: number;
    readonly writeCount: () => number;
    readonly inFlightCount: () => number;
  }) {
    const { queues, generation, epoch } = options;
    this.#writeCount = options.writeCount;
    this.#inFlightCount = options.inFlightCount;
    this.#checkpointer = new Checkpointer({
      ...{ generation, epoch },
      host: {
        mark: (number, markEpoch) => queues.post({ type: 'mark', number, epoch: markEpoch }),
        sendCheckpoint: (number, markEpoch) => {
          this.#sentCount++;
          queues.postTo(0, { type: 'checkpoint', number, epoch: markEpoch });
        },
        queueCount: () => queues.count(),
      },
    });
    // What an earlier writer has left is covered by the first checkpoint.
    this.#checkpointer.noteWrite();
  }

  /** Checkpoints so far. */
  get sentCount(): number {
    return this.#sentCount;
  }

  membership(epoch: number): void {
    this.#checkpointer.membership(epoch);
  }

  /** A link is back: what was sent again on it came behind the latest mark. */
  linked(): void {
    this.#checkpointer.noteWrite();
  }

  tick(): void {
    const count = this.#writeCount();
    // A write that was taken before may have waited for another one, and have been sent behind the last mark.
    const isBusy = this.#inFlightCount() > 0;
    if (count !== this.#seenWriteCount || isBusy) this.#checkpointer.noteWrite();
    this.#seenWriteCount = count;
    this.#checkpointer.tick();
  }

  fencePassed(queueId: number, number: number): void {
    this.#checkpointer.fencePassed(queueId, number);
  }
}
