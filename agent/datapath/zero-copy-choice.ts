/**
 * Whether one connection sends large payloads without a copy. It goes by what became of those that it sent so: a copy that the
 * kernel makes after all, on loopback or where a device cannot gather, costs more than one that was asked for.
 */
import type { DatapathLadder } from './messages.ts';

/** After so many zero-copy sends that were mostly copied, so many go without; then it tries again. */
const TRIAL_SENDS = 64;
const PLAIN_SENDS = 4096;

export class ZeroCopyChoice {
  readonly #bytesMin: number;
  readonly #isFree: boolean;
  #sends = 0;
  #copied = 0;
  #plainLeft = 0;

  constructor({ send, zeroCopyBytesMin }: DatapathLadder) {
    this.#bytesMin = send === 'plain' ? Number.POSITIVE_INFINITY : zeroCopyBytesMin;
    this.#isFree = send === 'auto';
  }

  /** How to send a payload of this length now. */
  take(lengthBytes: number): boolean {
    if (lengthBytes < this.#bytesMin) return false;
    if (this.#plainLeft === 0) return true;
    this.#plainLeft--;
    return false;
  }

  /** What became of one that was sent without a copy. */
  noteOutcome(copied: boolean): void {
    if (!this.#isFree) return;
    if (copied) this.#copied++;
    if (++this.#sends < TRIAL_SENDS) return;
    if (2 * this.#copied > TRIAL_SENDS) this.#plainLeft = PLAIN_SENDS;
    this.#sends = 0;
    this.#copied = 0;
  }

  /** For a new connection. */
  reset(): void {
    this.#sends = 0;
    this.#copied = 0;
    this.#plainLeft = 0;
  }
}
