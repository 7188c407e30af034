/**
 * Whether the peer of a connection is still there: looked at every tick, told what has happened until then. Half way to the
 * timeout the peer is to be asked for a sign of life, so that a slow disk is not taken for a dead node.
 */

/** The longest that one tick counts: a thread that was kept from running has heard nothing, whoever spoke. */
const TICK_MS_MAX = 200;
/** A peer that answers other things may take so long for a request. */
const REQUEST_MS_MAX = 30_000;

export type Verdict = 'fine' | 'ask' | 'silent' | 'stuck';

export class PeerWatch {
  readonly timeoutMs: number;
  readonly requestMsMax: number;
  #tickMs = 0;
  #progress = 0;
  #answers = 0;
  /** For how long nothing has come, and no request was answered. */
  #silentMs = 0;
  #waitingMs = 0;

  /** @param timeoutMs silence after which a peer is given up */
  constructor(timeoutMs: number) {
    this.timeoutMs = timeoutMs;
    this.requestMsMax = Math.max(timeoutMs, REQUEST_MS_MAX);
  }

  /** A connection begins. @param nowMs monotonic */
  begin(nowMs: number): void {
    this.#tickMs = nowMs;
    this.#silentMs = 0;
    this.#waitingMs = 0;
  }

  /**
   * @param isIdle nothing is expected of the peer
   * @param progress counts what came from the peer
   * @param answers counts the requests that were answered
   */
  tick(nowMs: number, isIdle: boolean, progress: number, answers: number): Verdict {
    const elapsedMs = Math.min(nowMs - this.#tickMs, TICK_MS_MAX);
    this.#tickMs = nowMs;
    this.#silentMs = isIdle || progress !== this.#progress ? 0 : this.#silentMs + elapsedMs;
    this.#waitingMs = isIdle || answers !== this.#answers ? 0 : this.#waitingMs + elapsedMs;
    this.#progress = progress;
    this.#answers = answers;
    if (this.#silentMs > this.timeoutMs) return 'silent';
    if (this.#waitingMs > this.requestMsMax) return 'stuck';
    return this.#silentMs > this.timeoutMs / 2 ? 'ask' : 'fine';
  }
}
