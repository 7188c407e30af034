/** Growing pauses before something that failed is tried again, by name. */

export interface PauseOptions {
  readonly minMs: number;
  readonly maxMs: number;
  /** Milliseconds. */
  readonly now: () => number;
}

export class Pauses {
  readonly #options: PauseOptions;
  readonly #pauses = new Map<string, { readonly untilMs: number; readonly lengthMs: number }>();

  constructor(options: PauseOptions) {
    this.#options = options;
  }

  isOver(name: string): boolean {
    return this.#options.now() >= (this.#pauses.get(name)?.untilMs ?? 0);
  }

  /** It failed: the next pause is twice as long as the last one. */
  begin(name: string): void {
    const { minMs, maxMs, now } = this.#options;
    const last = this.#pauses.get(name);
    const lengthMs = last === undefined ? minMs : Math.min(last.lengthMs * 2, maxMs);
    this.#pauses.set(name, { untilMs: now() + lengthMs, lengthMs });
  }

  /** It worked. */
  forget(name: string): void {
    this.#pauses.delete(name);
  }

  /** Whatever was missing may be there now. */
  forgetAll(): void {
    this.#pauses.clear();
  }
}
