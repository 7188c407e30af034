/** The main thread's side of copies from other replicas: reads for the worker what it asks for, into memory they share. */
import type { ByteRange } from '../replication/fresh.ts';
import { COPY_CHUNK_BYTES, COPY_CHUNKS, type CopyOrder, type FromWorker, type ToWorker } from './messages.ts';

/** Reads a chunk of the source into memory; resolves with its holes, by block. */
export type ReadChunk = (chunk: ByteRange, into: Uint8Array) => Promise<Uint8Array>;

/** A copy under way. */
export interface RunningCopy {
  /** Null: everything is copied, and durable. Nothing of it is at work any more. */
  readonly ended: Promise<string | null>;
  readonly copiedBytes: number;
  readonly totalBytes: number;
  cancel(reason: string): void;
}

interface Copy {
  readonly id: string;
  readonly window: Uint8Array;
  readonly read: ReadChunk;
  readonly resolve: (error: string | null) => void;
  copiedBytes: number;
  totalBytes: number;
}

export class Copies {
  readonly #copies = new Map<number, Copy>();
  readonly #post: (id: string, message: ToWorker) => void;

  /** @param post to the worker that owns a volume */
  constructor(post: (id: string, message: ToWorker) => void) {
    this.#post = post;
  }

  start(order: Omit<CopyOrder, 'window'>, read: ReadChunk): RunningCopy {
    const { request, id } = order;
    const window = new SharedArrayBuffer(COPY_CHUNKS * COPY_CHUNK_BYTES);
    const { promise, resolve } = Promise.withResolvers<string | null>();
    const copy: Copy = { id, window: new Uint8Array(window), read, resolve, copiedBytes: 0, totalBytes: 0 };
    this.#copies.set(request, copy);
    this.#post(id, { type: 'copy', ...order, window });
    return {
      ended: promise,
      get copiedBytes() {
        return copy.copiedBytes;
      },
      get totalBytes() {
        return copy.totalBytes;
      },
      cancel: (reason) => this.#post(id, { type: 'endCopy', request, id, reason }),
    };
  }

  pull(message: Extract<FromWorker, { type: 'pull' }>): void {
    const copy = this.#copies.get(message.request);
    if (copy === undefined) return;
    copy.copiedBytes = message.copiedBytes;
    copy.totalBytes = message.totalBytes;
    void this.#read(copy, message);
  }

  ended({ request, error }: Extract<FromWorker, { type: 'copied' }>): void {
    const copy = this.#copies.get(request);
    this.#copies.delete(request);
    copy?.resolve(error);
  }

  async #read(copy: Copy, message: Extract<FromWorker, { type: 'pull' }>): Promise<void> {
    const { request, index, offset, length } = message;
    const from = index * COPY_CHUNK_BYTES;
    let answer: { error: string | null; holes: Uint8Array };
    try {
      const holes = await copy.read({ offset, length }, copy.window.subarray(from, from + length));
      answer = { error: null, holes };
    } catch (error) {
      answer = { error: error instanceof Error ? error.message : String(error), holes: new Uint8Array(0) };
    }
    this.#post(copy.id, { type: 'pulled', request, id: copy.id, index, ...answer });
  }
}
