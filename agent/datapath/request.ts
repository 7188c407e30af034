/**
 * The requests in flight of one queue, a row a tag, in typed arrays: written when the kernel hands a request over,
 * read by the mirror and the connections. Nothing is allocated per request. Rows behind the last tag are for what the
 * agent itself tells its replicas (mark-rows.ts).
 */

/** Numbered as NBD's commands, so that they go to the wire unchanged (specification, "Request types"). */
export const Operation = { READ: 0, WRITE: 1, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;

/** Rows behind the tags. */
export const MARK_ROWS = 8;

export class RequestTable {
  /** Tags; there are MARK_ROWS more rows. */
  readonly depth: number;
  /** Operation.*, or a command of our own. */
  readonly operation: Uint16Array;
  /** NBD_CMD_FLAG_* */
  readonly flags: Uint16Array;
  readonly offsetBytes: Float64Array;
  readonly lengthBytes: Uint32Array;

  constructor(depth: number) {
    this.depth = depth;
    const rows = depth + MARK_ROWS;
    this.operation = new Uint16Array(rows);
    this.flags = new Uint16Array(rows);
    this.offsetBytes = new Float64Array(rows);
    this.lengthBytes = new Uint32Array(rows);
  }
}
