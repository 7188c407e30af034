/**
 * How fast a copy may go: within a rate, and with little at work beside clients. Pure; the clock is the worker's tick, so
 * that a rate is kept over tenths of a second, not within one.
 */

/** What may be caught up after a pause. */
const BURST_MS = 200;

export class Pacer {
  readonly #bytesPerSecond: number;
  #budgetBytes: number;
  #nowMs: number;

  /** @param bytesPerSecond 0: no limit */
  constructor(bytesPerSecond: number, nowMs: number) {
    this.#bytesPerSecond = bytesPerSecond;
    this.#budgetBytes = 0;
    this.#nowMs = nowMs;
  }

  /** Whether a chunk may be begun. The budget may go below zero: chunks larger than a burst then wait the longer. */
  take(lengthBytes: number, nowMs: number): boolean {
    if (this.#bytesPerSecond === 0) return true;
    const earned = (this.#bytesPerSecond * (nowMs - this.#nowMs)) / 1000;
    this.#nowMs = nowMs;
    this.#budgetBytes = Math.min(this.#budgetBytes + earned, (this.#bytesPerSecond * BURST_MS) / 1000);
    if (this.#budgetBytes < 0) return false;
    this.#budgetBytes -= lengthBytes;
    return true;
  }
}
