/**
 * The sending half in mode `splice`: headers are copied into the socket, payload goes there as references to the pages of own
 * memory (vmsplice into a pipe, splice to the socket), by one native call a batch. When the socket is full, the rest goes
 * when it is writable again.
 *
 * Pages handed over so are read by the kernel until the peer has acknowledged them, and nothing tells when that is. The
 * server's reply does: it comes after the server has read the whole payload, so the peer's TCP has it all, and the segment
 * that carries the reply acknowledges it. Until then the request is not done, and its tag's memory not used again. On a
 * connection that breaks before, the pages go with the socket, which is reset before anybody is told that it is down.
 */
import { errnoName } from '@blockwire/native/errors.ts';
import { allocateRegion, type Region } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import type { Ring } from '@blockwire/native/ring.ts';
import { PieceTable } from '@blockwire/native/transfer.ts';
import { IoringOp, POLLOUT } from '@blockwire/native/uapi/io-uring.ts';
import { REQUEST_SIZE_BYTES } from '@blockwire/proto/nbd/constants.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import { CounterIndex } from './counters.ts';
import type { Payload } from './payload.ts';
import { Operation, type RequestTable } from './request.ts';
import {
  CHAIN_REQUESTS_MAX,
  TRANSMIT_OPERATION_MIN,
  type Transmit,
  type TransmitOptions,
} from './transmit.ts';

const WRITABLE = TRANSMIT_OPERATION_MIN;

export class SpliceTransmitter implements Transmit {
  readonly notifications = 0;
  readonly #ring: Ring;
  readonly #requests: RequestTable;
  readonly #payload: Payload;
  readonly #counters: Float64Array;
  readonly #pagesBytesMin: number;
  readonly #headers: Region;
  readonly #pieces = new PieceTable(2 * CHAIN_REQUESTS_MAX);
  #pipeRead = -1;
  #pipeWrite = -1;
  #sent = 0;
  #fd = -1;
  #handler = 0;
  #busy = false;

  constructor(options: TransmitOptions) {
    this.#ring = options.ring;
    this.#requests = options.requests;
    this.#payload = options.payload;
    this.#counters = options.counters;
    // Below, looking up and counting pages costs more than copying them.
    this.#pagesBytesMin = options.ladder.smallBytesMax + 1;
    this.#headers = allocateRegion(CHAIN_REQUESTS_MAX * REQUEST_SIZE_BYTES);
  }

  get busy(): boolean {
    return this.#busy;
  }

  get awaitsCompletion(): boolean {
    return this.#busy;
  }

  start(
    fd: number,
    handler: number,
    cookieHigh: number,
    queue: Uint16Array,
    head: number,
    count: number,
  ): string | null {
    const requests = this.#requests;
    const payload = this.#payload;
    const pieces = this.#pieces;
    // Here and not before: a connection that is never made needs no pipe. One payload at a time is in it.
    if (this.#pipeRead < 0) [this.#pipeRead, this.#pipeWrite] = native.pipe(payload.strideBytes);
    pieces.clear();
    for (let i = 0; i < count; i++) {
      const tag = queue[(head + i) & (queue.length - 1)]!;
      const operation = requests.operation[tag]!;
      const length = requests.lengthBytes[tag]!;
      const at = i * REQUEST_SIZE_BYTES;
      const { view } = this.#headers;
      const offset = requests.offsetBytes[tag]!;
      encodeRequest(view, at, requests.flags[tag]!, operation, cookieHigh, tag, offset, length);
      pieces.add(this.#headers, at, REQUEST_SIZE_BYTES, false);
      if (operation !== Operation.WRITE) continue;
      const pages = length >= this.#pagesBytesMin;
      pieces.add(payload.own!, tag * payload.strideBytes, length, pages);
      if (pages) this.#counters[CounterIndex.zeroCopySends] = this.#counters[CounterIndex.zeroCopySends]! + 1;
    }
    this.#fd = fd;
    this.#handler = handler;
    this.#sent = 0;
    return this.#continue();
  }

  complete(_operation: number, _data: number, result: number): string | null {
    this.#busy = false;
    return result < 0 ? `send: ${errnoName(-result)}` : this.#continue();
  }

  settle(): void {}

  reset(): void {
    this.#busy = false;
    // What a broken connection left in the pipe must not go out on the next one.
    if (this.#pipeRead < 0) return;
    native.close(this.#pipeRead);
    native.close(this.#pipeWrite);
    this.#pipeRead = -1;
    this.#pipeWrite = -1;
  }

  #continue(): string | null {
    const { words, count } = this.#pieces;
    const sent = native.sendPieces(this.#fd, this.#pipeRead, this.#pipeWrite, words, this.#sent, count);
    if (sent < 0) return `send: ${errnoName(-sent)}`;
    this.#sent = sent;
    if (sent === count) return null;
    this.#busy = true;
    this.#ring.prepare(IoringOp.POLL_ADD, 0, 0, this.#fd, 0, 0, 0, POLLOUT, this.#handler, WRITABLE, 0);
    return null;
  }
}
