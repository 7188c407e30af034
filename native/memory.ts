/** Page-aligned memory with a known address, for SQEs that name it. */
import { type MappingHandle, native } from './native.ts';

export const PAGE_SIZE_BYTES = 4096;

/** One mapping, seen as bytes and as 32-bit words. Unmapped by `release`, at the latest by the garbage collector. */
export class Region {
  readonly buffer: ArrayBuffer;
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  readonly view: DataView;
  readonly address: number;
  readonly #handle: MappingHandle;

  constructor(mapped: { buffer: ArrayBuffer; address: number; handle: MappingHandle }) {
    this.buffer = mapped.buffer;
    this.bytes = new Uint8Array(mapped.buffer);
    this.words = new Uint32Array(mapped.buffer, 0, Math.floor(mapped.buffer.byteLength / 4));
    this.view = new DataView(mapped.buffer);
    this.address = mapped.address;
    this.#handle = mapped.handle;
  }

  get sizeBytes(): number {
    return this.buffer.byteLength;
  }

  /** Unmaps now. No operation that names this memory may be in flight. Again is no error. */
  release(): void {
    native.unmap(this.buffer, this.#handle);
  }
}

/** Private zeroed memory, rounded up to whole pages, all of them present unless `populate` is false. */
export function allocateRegion(sizeBytes: number, populate = true): Region {
  const rounded = Math.ceil(sizeBytes / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES;
  return new Region(native.map(-1, rounded, 0, true, populate));
}

/** A file's (or device's) pages, shared with the kernel, and all of them present unless `populate` is false. */
export function mapDescriptor(options: {
  fd: number;
  lengthBytes: number;
  offset: number;
  writable: boolean;
  populate?: boolean;
}): Region {
  const { fd, lengthBytes, offset, writable, populate } = options;
  return new Region(native.map(fd, lengthBytes, offset, writable, populate ?? true));
}
