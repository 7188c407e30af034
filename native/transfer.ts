/** Tables for the calls that do many small copies, or send many pieces, at once: filled in place, nothing is allocated. */
import type { Region } from './memory.ts';
import { native } from './native.ts';

const COPY_WORDS = 8;
const PIECE_WORDS = 4;
const TWO_TO_32 = 0x1_0000_0000;
const CopyKind = { FROM_FILE: 0, TO_FILE: 1, WITHIN: 2 } as const;
const RESULT_AT = 6;
const LABEL_AT = 7;

/** Copies between own memory and a file, or within own memory: gathered, then done by one call. */
export class CopyTable {
  readonly #words: Uint32Array;
  #count = 0;

  constructor(capacity: number) {
    this.#words = new Uint32Array(capacity * COPY_WORDS);
  }

  get count(): number {
    return this.#count;
  }

  /** From the file into `region`. The file position comes in two words; `label` is whatever tells copies apart. */
  fromFile(
    region: Region,
    offset: number,
    positionLow: number,
    positionHigh: number,
    length: number,
    label: number,
  ): void {
    const at = this.#add(CopyKind.FROM_FILE, region, offset, length, label);
    this.#words[at + 2] = positionLow;
    this.#words[at + 3] = positionHigh;
  }

  /** From `region` into the file. */
  toFile(
    region: Region,
    offset: number,
    positionLow: number,
    positionHigh: number,
    length: number,
    label: number,
  ): void {
    const at = this.#add(CopyKind.TO_FILE, region, offset, length, label);
    this.#words[at + 2] = positionLow;
    this.#words[at + 3] = positionHigh;
  }

  within(
    region: Region,
    offset: number,
    target: Region,
    targetOffset: number,
    length: number,
    label: number,
  ): void {
    const at = this.#add(CopyKind.WITHIN, region, offset, length, label);
    const address = target.address + targetOffset;
    this.#words[at + 2] = address >>> 0;
    this.#words[at + 3] = (address / TWO_TO_32) >>> 0;
  }

  /** Does what was gathered, in order; returns how many failed. Their labels can be asked for until `clear`. */
  run(fd: number): number {
    return native.transfer(fd, this.#words, this.#count);
  }

  /** The label of a copy that did not do its whole length, -1 for one that did. */
  failedLabel(index: number): number {
    const at = index * COPY_WORDS;
    return this.#words[at + RESULT_AT] === this.#words[at + 4] ? -1 : this.#words[at + LABEL_AT]!;
  }

  clear(): void {
    this.#count = 0;
  }

  #add(kind: number, region: Region, offset: number, length: number, label: number): number {
    const at = this.#count++ * COPY_WORDS;
    const words = this.#words;
    const address = region.address + offset;
    words[at] = address >>> 0;
    words[at + 1] = (address / TWO_TO_32) >>> 0;
    words[at + 4] = length;
    words[at + 5] = kind;
    words[at + LABEL_AT] = label;
    return at;
  }
}

/** Pieces of a stream for `native.sendPieces`: bytes that are copied, pages that are not. */
export class PieceTable {
  readonly words: Uint32Array;
  #count = 0;

  constructor(capacity: number) {
    this.words = new Uint32Array(capacity * PIECE_WORDS);
  }

  get count(): number {
    return this.#count;
  }

  /** @param pages whole pages by reference (`offset` at a page), to be left alone until the peer has them */
  add(region: Region, offset: number, length: number, pages: boolean): void {
    const at = this.#count++ * PIECE_WORDS;
    const address = region.address + offset;
    this.words[at] = address >>> 0;
    this.words[at + 1] = (address / TWO_TO_32) >>> 0;
    this.words[at + 2] = length;
    this.words[at + 3] = pages ? 1 : 0;
  }

  clear(): void {
    this.#count = 0;
  }
}
