/**
 * Writes held back in all queues of a device while its replicas take a snapshot. A hold ends by itself after its time, so
 * that a control plane that goes away does not stop a volume; whoever releases it then learns that it had ended.
 *
 *   hold ──▶ every queue has no write in flight ──▶ held ──▶ release · time is up · the device ends
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { ToWorker } from './datapath/messages.ts';

export interface HoldQueues {
  count(): number;
  post(message: ToWorker): void;
}

type State = 'none' | 'holding' | 'released' | 'ended';

export class WriteHold {
  readonly #queues: HoldQueues;
  readonly #log: Logger;
  /** Queues that have no write in flight. */
  readonly #held = new Set<number>();
  /** Tells holds apart: the answer to an earlier one does not count. */
  #number = 0;
  #state: State = 'none';
  #timer: NodeJS.Timeout | null = null;
  #outcome = Promise.withResolvers<void>();

  constructor(options: { readonly queues: HoldQueues; readonly log: Logger }) {
    this.#queues = options.queues;
    this.#log = options.log;
  }

  /** Whether writes wait. */
  get isHolding(): boolean {
    return this.#state === 'holding';
  }

  /**
   * Resolves when no write is in flight and none begins. Safe to repeat: the time begins anew.
   * Throws BW_TIMEOUT when the time is up before; writes go on then.
   */
  async hold(milliseconds: number): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#end('ended', `not released for ${milliseconds} ms`), milliseconds);
    if (!this.isHolding) {
      this.#state = 'holding';
      this.#held.clear();
      this.#outcome = Promise.withResolvers<void>();
      this.#queues.post({ type: 'hold', number: ++this.#number });
    }
    await this.#outcome.promise;
  }

  queueHeld(queueId: number, number: number): void {
    if (number !== this.#number || !this.isHolding) return;
    this.#held.add(queueId);
    if (this.#held.size === this.#queues.count()) this.#outcome.resolve();
  }

  /** Lets writes go. Safe to repeat. Throws BW_TIMEOUT when they have gone already, by themselves. */
  release(): void {
    if (this.isHolding) this.#end('released', '');
    if (this.#state !== 'released') {
      throw new BlockwireError('BW_TIMEOUT', 'writes are not held any more: what was done meanwhile is void');
    }
  }

  /** The device ends: nothing may wait. */
  end(): void {
    this.#end('ended', 'the device is being given up');
  }

  #end(state: State, reason: string): void {
    if (!this.isHolding) return;
    this.#state = state;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#queues.post({ type: 'unhold' });
    if (state === 'released') return;
    this.#log.warn({ reason }, 'held writes go on');
    this.#outcome.reject(new BlockwireError('BW_TIMEOUT', `writes were held no longer: ${reason}`));
    this.#outcome.promise.catch(() => {});
  }
}
