/** Tells when all writes that are in flight at a moment have ended: what began later does not matter. */
export class WriteFence {
  readonly #members: Uint8Array;
  #leftCount = 0;

  /** @param depth tags from 0 on */
  constructor(depth: number) {
    this.#members = new Uint8Array(depth);
  }

  /** Begins anew, without members. */
  begin(): void {
    this.#members.fill(0);
    this.#leftCount = 0;
  }

  add(tag: number): void {
    this.#members[tag] = 1;
    this.#leftCount++;
  }

  get isPassed(): boolean {
    return this.#leftCount === 0;
  }

  /** A request has ended. Returns whether it was the last member. */
  ended(tag: number): boolean {
    if (this.#members[tag] === 0) return false;
    this.#members[tag] = 0;
    return --this.#leftCount === 0;
  }
}
