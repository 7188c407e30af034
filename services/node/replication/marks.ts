/**
 * Which intents a CHECKPOINT covers. The writer sends MARK n on every connection, in order with its writes; once every
 * write that it sent before is acknowledged by all members, it sends CHECKPOINT n.
 *
 * Writes are stamped as they arrive, and the stamp is raised when MARK n arrives first on any connection. A write with an
 * older stamp arrived before that, so it was sent before MARK n on its own connection, as long as every new connection
 * begins with the latest mark. Marks of another epoch than the installed one do not count: a replica that joined has had
 * no part in what was sent before.
 */

/** Raises the stamp that writes get from now on, and returns it. */
export type NextStamp = () => number;

export interface Mark {
  readonly number: number;
  readonly epoch: number;
}

export class CheckpointMarks {
  #number = 0;
  #epoch = 0;
  #stamp = 0;

  /** MARK n has arrived. @param installedEpoch what is installed here */
  mark(mark: Mark, installedEpoch: number, next: NextStamp): void {
    if (mark.epoch !== installedEpoch) return;
    if (mark.epoch === this.#epoch && mark.number <= this.#number) return;
    this.#number = mark.number;
    this.#epoch = mark.epoch;
    this.#stamp = next();
  }

  /** CHECKPOINT n has arrived: intents of regions written only before the stamp returned may go. Null: none. */
  covered(mark: Mark, installedEpoch: number): number | null {
    const isKnown = mark.number === this.#number && mark.epoch === this.#epoch;
    return isKnown && mark.epoch === installedEpoch ? this.#stamp : null;
  }
}
