/** Steps about one thing run one after the other; those about different things do not wait for each other. */
export class InOrder {
  /** By key: the last step that was taken on. */
  readonly #underWay = new Map<string, Promise<unknown>>();

  /** Runs `step` when every earlier one of this key has ended, well or not. Resolves and throws as it does. */
  run<T>(key: string, step: () => Promise<T>): Promise<T> {
    const before = this.#underWay.get(key) ?? Promise.resolve();
    const outcome = before.then(step, step);
    this.#underWay.set(key, outcome);
    const forget = (): void => {
      if (this.#underWay.get(key) === outcome) this.#underWay.delete(key);
    };
    outcome.then(forget, forget);
    return outcome;
  }

  /** Resolves when all that was taken on has ended. */
  async ended(): Promise<void> {
    await Promise.allSettled(this.#underWay.values());
  }
}
