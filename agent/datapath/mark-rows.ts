/**
 * MARK and CHECKPOINT as rows of the request table, so that they go to the replicas in order with the writes. One row serves
 * all links. A row is used again after MARK_ROWS others: a connection on which it is still open then has not answered for
 * several marks, and is given up (Connection.submit).
 */
import { NBD_CMD_BLOCKWIRE_CHECKPOINT, NBD_CMD_BLOCKWIRE_MARK } from '@blockwire/proto/nbd/constants.ts';
import { MARK_ROWS, type RequestTable } from './request.ts';

export interface Mark {
  readonly number: number;
  readonly epoch: number;
}

export class MarkRows {
  readonly #requests: RequestTable;
  #usedCount = 0;
  #latest: number | null = null;

  constructor(requests: RequestTable) {
    this.#requests = requests;
  }

  /** The row of the latest mark: what every new connection for writes begins with. Null before the first one. */
  get latest(): number | null {
    return this.#latest;
  }

  mark(mark: Mark): number {
    this.#latest = this.#fill(NBD_CMD_BLOCKWIRE_MARK, mark);
    return this.#latest;
  }

  checkpoint(mark: Mark): number {
    return this.#fill(NBD_CMD_BLOCKWIRE_CHECKPOINT, mark);
  }

  #fill(command: number, { number, epoch }: Mark): number {
    const { depth, operation, offsetBytes, lengthBytes } = this.#requests;
    const row = depth + (this.#usedCount++ % MARK_ROWS);
    operation[row] = command;
    offsetBytes[row] = number;
    lengthBytes[row] = epoch;
    return row;
  }
}
