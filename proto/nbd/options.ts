/** What both sides of the handshake share: growing output, and bounded reading of option data. */
import {
  NBD_OPT_REPLY_MAGIC_HI,
  NBD_OPT_REPLY_MAGIC_LO,
  NBD_OPTS_MAGIC_HI,
  NBD_OPTS_MAGIC_LO,
  NBD_STRING_SIZE_BYTES_MAX,
} from './constants.ts';
import { writeUint64 } from './request.ts';

const utf8Strict = new TextDecoder('utf-8', { fatal: true });
const utf8Encoder = new TextEncoder();

/** Big-endian output that grows; the handshake is not a hot path. */
export class HandshakeOutput {
  #bytes = new Uint8Array(512);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  get isEmpty(): boolean {
    return this.#length === 0;
  }

  uint16(value: number): this {
    // The room first: growing replaces the view.
    const at = this.#grow(2);
    this.#view.setUint16(at, value);
    return this;
  }

  uint32(value: number): this {
    const at = this.#grow(4);
    this.#view.setUint32(at, value);
    return this;
  }

  uint64(value: number): this {
    const at = this.#grow(8);
    writeUint64(this.#view, at, value);
    return this;
  }

  bytes(value: Uint8Array): this {
    const at = this.#grow(value.length);
    this.#bytes.set(value, at);
    return this;
  }

  /** A string with its 32-bit length before it. */
  countedString(value: string): this {
    const encoded = utf8Encoder.encode(value);
    return this.uint32(encoded.length).bytes(encoded);
  }

  string(value: string): this {
    return this.bytes(utf8Encoder.encode(value));
  }

  zeroes(count: number): this {
    this.#grow(count);
    return this;
  }

  /** Everything written since the last take. */
  take(): Uint8Array {
    const taken = this.#bytes.slice(0, this.#length);
    this.#bytes.fill(0, 0, this.#length);
    this.#length = 0;
    return taken;
  }

  /** Makes room and returns its position; the room reads as zeroes. */
  #grow(count: number): number {
    const at = this.#length;
    if (at + count > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(this.#bytes.length * 2, at + count));
      larger.set(this.#bytes);
      this.#bytes = larger;
      this.#view = new DataView(larger.buffer);
    }
    this.#length = at + count;
    return at;
  }
}

/** One option of the client ("Fixed newstyle negotiation"). */
export function writeOption(output: HandshakeOutput, option: number, data: Uint8Array): void {
  output.uint32(NBD_OPTS_MAGIC_HI).uint32(NBD_OPTS_MAGIC_LO).uint32(option).uint32(data.length).bytes(data);
}

/** One reply of the server to `option`. */
export function writeOptionReply(
  output: HandshakeOutput,
  option: number,
  type: number,
  data: Uint8Array,
): void {
  output.uint32(NBD_OPT_REPLY_MAGIC_HI).uint32(NBD_OPT_REPLY_MAGIC_LO);
  output.uint32(option).uint32(type).uint32(data.length).bytes(data);
}

/** Reads big-endian fields of option data; every read past the end answers null. */
export class OptionReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get remaining(): number {
    return this.#bytes.length - this.#at;
  }

  uint16(): number | null {
    if (this.remaining < 2) return null;
    this.#at += 2;
    return this.#view.getUint16(this.#at - 2);
  }

  uint32(): number | null {
    if (this.remaining < 4) return null;
    this.#at += 4;
    return this.#view.getUint32(this.#at - 4);
  }

  /** A string of `length` bytes; null also for one that is too long, not UTF-8, or holds NUL ("Conventions"). */
  string(length: number): string | null {
    if (length > this.remaining || length > NBD_STRING_SIZE_BYTES_MAX) return null;
    const encoded = this.#bytes.subarray(this.#at, this.#at + length);
    this.#at += length;
    return decodeString(encoded);
  }

  /** A string with its 32-bit length before it. */
  countedString(): string | null {
    const length = this.uint32();
    return length === null ? null : this.string(length);
  }
}

/** A protocol string; null if it is not UTF-8 or holds NUL. */
export function decodeString(encoded: Uint8Array): string | null {
  if (encoded.includes(0)) return null;
  try {
    return utf8Strict.decode(encoded);
  } catch {
    return null;
  }
}
