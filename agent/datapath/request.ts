/**
 * The requests in flight of one queue, a row a tag, in typed arrays: written when the kernel hands a request over,
 * read by the mirror and the connections. Nothing is allocated per request.
 */

/** Numbered as NBD's commands, so that they go to the wire unchanged (specification, "Request types"). */
export const Operation = { READ: 0, WRITE: 1, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;

export class RequestTable {
  readonly depth: number;
  /** Operation.* */
  readonly operation: Uint8Array;
  /** NBD_CMD_FLAG_* */
  readonly flags: Uint16Array;
  readonly offsetBytes: Float64Array;
  readonly lengthBytes: Uint32Array;

  constructor(depth: number) {
    this.depth = depth;
    this.operation = new Uint8Array(depth);
    this.flags = new Uint16Array(depth);
    this.offsetBytes = new Float64Array(depth);
    this.lengthBytes = new Uint32Array(depth);
  }
}
