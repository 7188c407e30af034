/**
 * Whether a device's I/O is served, and what becomes of it when it is not: it waits, and after the I/O timeout it fails
 * until a replica answers again. Time is a parameter.
 */

export type IoState = 'ok' | 'waiting' | 'failing';

export interface IoWatchOptions {
  /** Zero: I/O waits without bound. */
  readonly timeoutMs: number;
  /** Runs `step` after so many milliseconds; returns what calls it off. */
  readonly after: (milliseconds: number, step: () => void) => () => void;
  readonly onChange: (state: IoState, before: IoState) => void;
}

export class IoWatch {
  readonly #options: IoWatchOptions;
  #state: IoState = 'ok';
  #isGivenUp = false;
  #callOff: (() => void) | null = null;

  constructor(options: IoWatchOptions) {
    this.#options = options;
  }

  get state(): IoState {
    return this.#state;
  }

  /** To be told at every change of a link or of the membership. */
  served(isServed: boolean): void {
    if (this.#isGivenUp) return;
    if (isServed) {
      this.stop();
      this.#become('ok');
    } else if (this.#state === 'ok') {
      this.#become('waiting');
      const { timeoutMs, after } = this.#options;
      if (timeoutMs > 0) this.#callOff = after(timeoutMs, () => this.#become('failing'));
    }
  }

  /** I/O fails from now on, for good. */
  giveUp(): void {
    this.#isGivenUp = true;
    this.stop();
    this.#state = 'failing';
  }

  stop(): void {
    this.#callOff?.();
    this.#callOff = null;
  }

  #become(state: IoState): void {
    const before = this.#state;
    if (state === before) return;
    this.#state = state;
    this.#options.onChange(state, before);
  }
}
