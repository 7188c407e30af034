/**
 * Messages gathered from pieces of memory: the iovecs and msghdrs of one transmit chain, in memory that the kernel reads, and
 * the SQEs that send them. They stay until the next chain begins.
 */
import { allocateRegion, type Region } from '@blockwire/native/memory.ts';
import type { Ring } from '@blockwire/native/ring.ts';
import { IoringOp } from '@blockwire/native/uapi/io-uring.ts';

/** struct iovec and struct user_msghdr of a 64-bit kernel, in words. */
const IOVEC_WORDS = 4;
const MSGHDR_WORDS = 14;
const TWO_TO_32 = 0x1_0000_0000;

export class Gather {
  /** Of the message being gathered, or of the one that was sent last. */
  messageBytes = 0;
  readonly #ring: Ring;
  /** iovecs, then msghdrs. */
  readonly #vectors: Region;
  readonly #words: Uint32Array;
  readonly #msghdrsAt: number;
  /** The message being gathered: its first iovec, and the one behind its last. */
  #first = 0;
  #end = 0;
  #messages = 0;

  /** @param piecesMax of all messages of a chain */
  constructor(ring: Ring, { piecesMax, messagesMax }: { piecesMax: number; messagesMax: number }) {
    this.#ring = ring;
    this.#msghdrsAt = piecesMax * IOVEC_WORDS;
    this.#vectors = allocateRegion((this.#msghdrsAt + messagesMax * MSGHDR_WORDS) * 4);
    this.#words = this.#vectors.words;
  }

  /** Whether nothing has been gathered since the last message. */
  get isEmpty(): boolean {
    return this.#first === this.#end;
  }

  /** Whether no message of this chain was sent yet. */
  get isFirst(): boolean {
    return this.#first === 0;
  }

  /** Begins a chain. */
  clear(): void {
    this.#first = 0;
    this.#end = 0;
    this.#messages = 0;
  }

  append(region: Region, offset: number, length: number): void {
    if (this.#first === this.#end) this.messageBytes = 0;
    const at = this.#end++ * IOVEC_WORDS;
    this.#point(at, region.address + offset);
    this.#words[at + 2] = length;
    this.#words[at + 3] = 0;
    this.messageBytes += length;
  }

  /** Makes the last piece longer. */
  extend(length: number): void {
    const at = (this.#end - 1) * IOVEC_WORDS + 2;
    this.#words[at] = this.#words[at]! + length;
    this.messageBytes += length;
  }

  /** Writes the SQE that sends what was gathered as one message. */
  send(fd: number, sqeFlags: number, messageFlags: number, handler: number, operation: number): void {
    const first = this.#first;
    const count = this.#end - first;
    const single = count === 1;
    const ring = this.#ring;
    const words = this.#words;
    const at = ring.prepare(
      single ? IoringOp.SEND : IoringOp.SENDMSG,
      sqeFlags,
      0,
      fd,
      0,
      0,
      single ? this.messageBytes : 1,
      messageFlags,
      handler,
      operation,
      0,
    );
    if (single) {
      ring.sqes[at + 4] = words[first * IOVEC_WORDS]!;
      ring.sqes[at + 5] = words[first * IOVEC_WORDS + 1]!;
    } else {
      const messageAt = this.#msghdrsAt + this.#messages++ * MSGHDR_WORDS;
      // msg_iov and msg_iovlen; names, control data and flags stay zero.
      this.#point(messageAt + 4, this.#vectors.address + first * IOVEC_WORDS * 4);
      words[messageAt + 6] = count;
      ring.pointTo(at, this.#vectors, messageAt * 4);
    }
    this.#first = this.#end;
  }

  /** What is left of the chain's only message when its first bytes were sent, which are not all. */
  keepBehind(sentBytes: number): void {
    const words = this.#words;
    let skip = sentBytes;
    let at = 0;
    while (skip >= words[at + 2]!) {
      skip -= words[at + 2]!;
      at += IOVEC_WORDS;
    }
    this.#point(at, words[at + 1]! * TWO_TO_32 + words[at]! + skip);
    words[at + 2] = words[at + 2]! - skip;
    this.#first = at / IOVEC_WORDS;
    this.messageBytes -= sentBytes;
  }

  #point(at: number, address: number): void {
    this.#words[at] = address >>> 0;
    this.#words[at + 1] = (address / TWO_TO_32) >>> 0;
  }
}
