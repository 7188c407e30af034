/**
 * How much one batch reads. What is read, checksummed and sent within a batch stays in the CPU's cache, and the client can work on
 * it while the next batch reads; of eight reads of 512 KiB at once neither is true. A connection whose next read has to wait goes on in
 * the next batch, and nothing is waited for before that.
 */

/** Reads begin until a batch has this much. Half of a usual cache of one core (1 MiB): the other half is the kernel's copy. */
export const READ_BYTES_MAX = 512 * 1024;

export class ReadBudget {
  #bytes = 0;
  /** The connections that wait, and whether each of all does. */
  readonly #waiting: Int32Array;
  readonly #isWaiting: Uint8Array;
  #count = 0;

  constructor(connectionsMax: number) {
    this.#waiting = new Int32Array(connectionsMax);
    this.#isWaiting = new Uint8Array(connectionsMax);
  }

  get someoneWaits(): boolean {
    return this.#count > 0;
  }

  /** Whether the connection may begin a read in this batch. Else `renew` names it. */
  allows(connection: number): boolean {
    if (this.#bytes < READ_BYTES_MAX) return true;
    if (this.#isWaiting[connection] === 0) {
      this.#isWaiting[connection] = 1;
      this.#waiting[this.#count++] = connection;
    }
    return false;
  }

  /** A read of so many bytes begins. */
  take(lengthBytes: number): void {
    this.#bytes += lengthBytes;
  }

  /**
   * A new batch: names those that wait, of which the last named is served first (connection-table.ts). Whoever came first in
   * the batch before, and so had most of it, comes last now.
   */
  renew(resume: (connection: number) => void): void {
    this.#bytes = 0;
    const count = this.#count;
    this.#count = 0;
    for (let i = count; i > 0; i--) {
      const connection = this.#waiting[i % count]!;
      this.#isWaiting[connection] = 0;
      resume(connection);
    }
  }
}
