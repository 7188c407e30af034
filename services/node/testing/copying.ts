/** A worker that copies from another replica, which is a buffer: for tests. */
import assert from 'node:assert/strict';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { COPY_CHUNK_BYTES, COPY_CHUNKS, type FromWorker } from '../data/messages.ts';
import type { Installed } from '../replication/admission.ts';
import { FD, feed, type Harness, harness, INSTALLED, MIB, open, request } from './worker-harness.ts';

export const SIZE = 3 * MIB + 1536;
export const REQUEST = 77;
export const REBUILDING: Installed = { ...INSTALLED, epoch: 2, role: 'rebuilding', joinedEpoch: 2 };

export type Pull = Extract<FromWorker, { type: 'pull' }>;

/** A replica on a simulated disk, and the one that it copies from. */
export class Copying {
  readonly h: Harness;
  /** What the other replica holds. */
  readonly source: Buffer;
  readonly window = new SharedArrayBuffer(COPY_CHUNKS * COPY_CHUNK_BYTES);
  readonly pulls: Pull[] = [];
  #seen = 0;

  constructor(seed: number, options: { installed?: Installed; poolBytes?: number } = {}) {
    this.h = harness(seed, { sizeBytes: SIZE, installed: INSTALLED, ...options });
    this.#writeOld();
    if (options.installed !== INSTALLED) {
      this.h.server.onMessage({
        ...{ type: 'install', request: 5, id: 'vol', installed: REBUILDING, cut: 'all' },
      });
      this.h.settle();
    }
    this.source = Buffer.alloc(SIZE);
    // Data and holes in runs of blocks.
    for (let at = 0; at < SIZE; at += 4096) {
      if (this.h.random() % 3 !== 0)
        this.source.fill(1 + (this.h.random() % 200), at, Math.min(at + 4096, SIZE));
    }
  }

  /** What the replica held when it fell behind. */
  #writeOld(): void {
    const socket = open(this.h);
    for (let at = 0; at < SIZE; at += 65_536) {
      const length = Math.min(65_536, SIZE - at);
      feed(socket, request(nbd.NBD_CMD_WRITE, at, at, length), Buffer.alloc(length, 255));
    }
    this.h.settle();
    assert.ok(this.content.every((byte) => byte === 255));
    socket.clientClosed = true;
    this.h.settle();
  }

  start(what: 'rebuild' | 'reconcile' | 'repair', bytesPerSecond = 0): void {
    this.h.server.onMessage({
      ...{
        type: 'copy',
        request: REQUEST,
        id: 'vol',
        what,
        epoch: what === 'repair' ? 1 : 0,
        bytesPerSecond,
      },
      ...{ regions: Uint32Array.of(0, 1, 2, 3), window: this.window },
    });
  }

  /** One thing that can happen. False: nothing can. */
  step(): boolean {
    const { server, io, posted, random } = this.h;
    for (; this.#seen < posted.length; this.#seen++) {
      const message = posted[this.#seen]!;
      if (message.type === 'pull') this.pulls.push(message);
    }
    if (this.pulls.length > 0 && random() % 4 === 0) {
      this.answer(this.pulls.splice(random() % this.pulls.length, 1)[0]!);
      return true;
    }
    if (random() % 3 === 0) server.onBatchEnd();
    if (io.step()) return true;
    server.onBatchEnd();
    return io.step() || this.pulls.length > 0 || this.#seen < posted.length;
  }

  answer({ index, offset, length }: Pull, error: string | null = null): void {
    const holes = new Uint8Array(Math.ceil(length / 4096));
    const chunk = this.source.subarray(offset, offset + length);
    for (let block = 0; block < holes.length; block++) {
      if (chunk.subarray(block * 4096, (block + 1) * 4096).every((byte) => byte === 0)) holes[block] = 1;
    }
    new Uint8Array(this.window).set(chunk, index * COPY_CHUNK_BYTES);
    this.h.server.onMessage({ type: 'pulled', request: REQUEST, id: 'vol', index, error, holes });
  }

  run(): void {
    while (this.step()) {
      // Until nothing can happen any more.
    }
  }

  /** Undefined: it goes on. */
  get outcome(): string | null | undefined {
    return this.h.posted.find((message) => message.type === 'copied')?.error;
  }

  get content(): Buffer {
    return this.h.io.files.get(FD)!.subarray(0, SIZE);
  }
}
