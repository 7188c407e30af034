/** The NBD handshake of one connection, on the worker's ring: before it there is a socket, after it an export. */
import { allocateRegion, type Region } from '@blockwire/native/memory.ts';
import type { Ring } from '@blockwire/native/ring.ts';
import { MSG_NOSIGNAL, MSG_WAITALL } from '@blockwire/native/uapi/io-uring.ts';
import { ClientHandshake, type ClientHandshakeResult } from '@blockwire/proto/nbd/client-handshake.ts';
import { NBD_REP_ERR_POLICY } from '@blockwire/proto/nbd/constants.ts';
import { describeTransfer } from './transmit.ts';

/** Room for what a server says at once. */
export const HANDSHAKE_BYTES = 64 * 1024;

/** Operation numbers on the ring. */
export const HandshakeOp = { SEND: 8, RECEIVE: 9 } as const;
export const HANDSHAKE_OPERATION_MIN = HandshakeOp.SEND;

export interface HandshakeFailure {
  readonly reason: string;
  /** The BW_ code by which a node did not let the connection in, or null. */
  readonly refusal: string | null;
}

export class RingHandshake {
  /** What the server said; null before the end. */
  result: ClientHandshakeResult | null = null;
  operationsInFlight = 0;
  readonly #ring: Ring;
  readonly #handler: number;
  /** HANDSHAKE_BYTES at least. */
  readonly #input: Region;
  #output: Region | null = null;
  #handshake: ClientHandshake | null = null;
  #fd = -1;
  #receivedBytes = 0;

  /** @param handler whose completions are handed to `complete` */
  constructor(ring: Ring, handler: number, input: Region) {
    this.#ring = ring;
    this.#handler = handler;
    this.#input = input;
  }

  /** On a socket that is connected. */
  start(fd: number, exportName: string): void {
    this.#fd = fd;
    this.#handshake = new ClientHandshake({ exportName, structuredReplies: false });
    this.#receivedBytes = 0;
    this.#receive();
  }

  /**
   * A completion of an operation from HANDSHAKE_OPERATION_MIN up. Returns whether the handshake is through, or why not.
   * @param isWanted the connection was not given up meanwhile
   */
  complete(operation: number, result: number, isWanted: boolean): boolean | HandshakeFailure {
    this.operationsInFlight--;
    if (operation === HandshakeOp.SEND)
      return result < 0 ? failed(describeTransfer('handshake', result)) : false;
    if (result <= 0) return failed(describeTransfer('handshake', result));
    return isWanted ? this.#continue(result) : false;
  }

  #continue(received: number): boolean | HandshakeFailure {
    const handshake = this.#handshake!;
    const { bytes } = this.#input;
    this.#receivedBytes += received;
    const consumed = handshake.consume(bytes.subarray(0, this.#receivedBytes));
    bytes.copyWithin(0, consumed, this.#receivedBytes);
    this.#receivedBytes -= consumed;
    if (handshake.state === 'failed') {
      const { reply = null, message = 'the handshake failed' } = handshake.failure ?? {};
      const code = reply === NBD_REP_ERR_POLICY ? /\bBW_[A-Z_]+\b/.exec(message) : null;
      return failed(message, code?.[0] ?? null);
    }
    if (handshake.state === 'ready') {
      this.result = handshake.result;
      return this.#receivedBytes === 0 || failed('the server sent replies before it was asked');
    }
    this.#send(handshake.takeOutput());
    if (this.#receivedBytes === HANDSHAKE_BYTES) return failed('the handshake is longer than a client reads');
    this.#receive();
    return false;
  }

  #receive(): void {
    this.operationsInFlight++;
    const at = this.#receivedBytes;
    const room = HANDSHAKE_BYTES - at;
    this.#ring.receive(this.#fd, this.#input, at, room, 0, 0, this.#handler, HandshakeOp.RECEIVE, 0);
  }

  #send(output: Uint8Array): void {
    if (output.length === 0) return;
    this.#output ??= allocateRegion(HANDSHAKE_BYTES);
    this.#output.bytes.set(output);
    this.operationsInFlight++;
    const flags = MSG_WAITALL | MSG_NOSIGNAL;
    this.#ring.send(this.#fd, this.#output, 0, output.length, flags, 0, this.#handler, HandshakeOp.SEND, 0);
  }
}

function failed(reason: string, refusal: string | null = null): HandshakeFailure {
  return { reason, refusal };
}
