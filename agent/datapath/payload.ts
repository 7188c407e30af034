/**
 * Where the payloads of a queue's requests are, and how they get between there and the kernel's request pages:
 *
 *   registered   the request's own pages, as the ring's buffer of the tag's number: nothing is copied
 *   own memory   a stride a tag. The kernel copies by itself (plain ublk), or we do with the calls of USER_COPY, all copies
 *                of a batch in one native call
 *
 * `run` comes before any SQE that could make the kernel look: before a write is sent, before a read is committed.
 */
import type { Region } from '@blockwire/native/memory.ts';
import { CopyTable } from '@blockwire/native/transfer.ts';

/** include/uapi/linux/ublk_cmd.h: UBLKSRV_IO_BUF_OFFSET, UBLK_TAG_OFF, UBLK_QID_OFF. */
const IO_BUFFER_OFFSET = 0x8000_0000;
const TAG_SIZE = 2 ** 25;
const QUEUE_SIZE = 2 ** 41;
const TWO_TO_32 = 0x1_0000_0000;

export interface PayloadOptions {
  readonly depth: number;
  /** Null if every payload is in registered pages. */
  readonly own: Region | null;
  readonly strideBytes: number;
  /** Payloads up to this size are in own memory. */
  readonly ownBytesMax: number;
  /** With USER_COPY: /dev/ublkcN and the queue. Null if the kernel copies to and from own memory by itself. */
  readonly userCopy: { readonly fd: number; readonly queueId: number } | null;
}

export class Payload {
  readonly own: Region | null;
  readonly strideBytes: number;
  readonly ownBytesMax: number;
  /** Whether our own calls copy payload. */
  readonly copies: boolean;
  readonly #fd: number;
  /** File position of each tag's data, in two words. */
  readonly #positionLow: Uint32Array;
  readonly #positionHigh: Uint32Array;
  readonly #table: CopyTable;
  readonly #failed: Uint8Array;

  constructor(options: PayloadOptions) {
    const { depth, userCopy } = options;
    this.own = options.own;
    this.strideBytes = options.strideBytes;
    this.ownBytesMax = options.own === null ? -1 : options.ownBytesMax;
    this.copies = userCopy !== null;
    this.#fd = userCopy?.fd ?? -1;
    // A tag gives its read's payload back and brings a write's in one batch at most.
    this.#table = new CopyTable(2 * depth);
    this.#failed = new Uint8Array(depth);
    this.#positionLow = new Uint32Array(depth);
    this.#positionHigh = new Uint32Array(depth);
    for (let tag = 0; tag < depth; tag++) {
      const position = IO_BUFFER_OFFSET + tag * TAG_SIZE + (userCopy?.queueId ?? 0) * QUEUE_SIZE;
      this.#positionLow[tag] = position % TWO_TO_32;
      this.#positionHigh[tag] = Math.floor(position / TWO_TO_32);
    }
  }

  /** Whether a payload of this length is in own memory, at `tag * strideBytes`. */
  isOwn(lengthBytes: number): boolean {
    return lengthBytes <= this.ownBytesMax;
  }

  /** Brings a write's payload into own memory; it is there after `run`. */
  fetch(tag: number, lengthBytes: number): void {
    if (!this.copies || lengthBytes > this.ownBytesMax) return;
    this.#table.fromFile(
      this.own!,
      tag * this.strideBytes,
      this.#positionLow[tag]! | 0,
      this.#positionHigh[tag]! | 0,
      lengthBytes,
      tag,
    );
  }

  /** A read's payload is at `offset` of `source`: brings it to where the kernel expects it, by the end of `run`. */
  deliver(tag: number, source: Region, offset: number, lengthBytes: number): void {
    if (this.copies) {
      this.#table.toFile(
        source,
        offset,
        this.#positionLow[tag]! | 0,
        this.#positionHigh[tag]! | 0,
        lengthBytes,
        tag,
      );
    } else if (source !== this.own) {
      this.#table.within(source, offset, this.own!, tag * this.strideBytes, lengthBytes, tag);
    }
  }

  /** Does the copies that were asked for. */
  run(): void {
    const table = this.#table;
    if (table.count === 0) return;
    if (table.run(this.#fd) > 0) {
      for (let i = 0; i < table.count; i++) {
        const tag = table.failedLabel(i);
        if (tag >= 0) this.#failed[tag] = 1;
      }
    }
    table.clear();
  }

  /** Whether the last copy of a tag failed; asking forgets it. */
  takeFailure(tag: number): boolean {
    const failed = this.#failed[tag] === 1;
    if (failed) this.#failed[tag] = 0;
    return failed;
  }
}
