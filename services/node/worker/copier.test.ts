/** Copies into a volume on a simulated disk: beside a writer, with little memory, with faults, ended in the middle. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { COPY_CHUNK_BYTES, COPY_CHUNKS, type FromWorker } from '../data/messages.ts';
import { Stat } from '../data/stats.ts';
import type { Installed } from '../replication/admission.ts';
import type { SimulatedSocket } from '../testing/simulated-io.ts';
import {
  FD,
  feed,
  type Harness,
  harness,
  INSTALLED,
  MIB,
  open,
  replies,
  request,
} from '../testing/worker-harness.ts';

const SIZE = 3 * MIB + 1536;
const REQUEST = 77;
const REBUILDING: Installed = { ...INSTALLED, epoch: 2, role: 'rebuilding', joinedEpoch: 2 };

/** Why a copy ends, in the cases of a test below. */
const REASONS = [
  /^a reason$/,
  /membership has changed/,
  /writing failed/,
  /is being removed/,
  /source went away/,
];

type Pull = Extract<FromWorker, { type: 'pull' }>;

class Copying {
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
      ...{ type: 'copy', request: REQUEST, id: 'vol', what, sinceEpoch: 0, bytesPerSecond },
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

/** A write of the volume's one writer: it comes to the replica, and to the source, in any order. */
function write(copying: Copying, socket: SimulatedSocket, cookie: number): () => void {
  const { h, source } = copying;
  const sectors = 1 + (h.random() % 40);
  const offset = (h.random() % (SIZE / 512 - sectors)) * 512;
  const zeroes = h.random() % 4 === 0;
  const data = Buffer.alloc(sectors * 512, zeroes ? 0 : 201 + (h.random() % 50));
  if (zeroes) feed(socket, request(nbd.NBD_CMD_WRITE_ZEROES, cookie, offset, data.length));
  else feed(socket, request(nbd.NBD_CMD_WRITE, cookie, offset, data.length), data);
  return () => void data.copy(source, offset);
}

test('a rebuild beside a writer ends with equal replicas', () => {
  for (let seed = 0; seed < 20; seed++) {
    const copying = new Copying(seed, { poolBytes: (1 + (seed % 2) * 7) * MIB });
    const { h } = copying;
    h.io.transferMax = seed % 3 === 0 ? 8192 : Number.POSITIVE_INFINITY;
    const socket = open(h);
    copying.start('rebuild');
    for (let cookie = 1; cookie <= 60 && copying.outcome === undefined; cookie++) {
      const isSourceFirst = h.random() % 2 === 0;
      const toSource = write(copying, socket, cookie);
      if (isSourceFirst) toSource();
      for (let i = h.random() % 60; i > 0; i--) copying.step();
      if (!isSourceFirst) toSource();
      // The writer has one request at a time.
      while (!replies(socket, new Map()).has(cookie)) assert.ok(copying.step(), 'the write is answered');
    }
    copying.run();
    assert.equal(copying.outcome, null, `seed ${seed}`);
    assert.ok(copying.content.equals(copying.source), `seed ${seed}`);
    for (const { error } of replies(socket, new Map()).values()) assert.equal(error, nbd.NBD_OK);
    // What is read back matches its checksums.
    for (let at = 0; at + 131_072 <= SIZE; at += 131_072) {
      feed(socket, request(nbd.NBD_CMD_READ, 1000 + at, at, 131_072));
      copying.run();
      const found = replies(socket, new Map([[1000 + at, 131_072]])).get(1000 + at)!;
      assert.equal(found.error, nbd.NBD_OK, `seed ${seed}`);
      socket.outbound = Buffer.alloc(0);
    }
  }
});

test('reconciling overwrites what is here, also the end of the volume', () => {
  const copying = new Copying(1, { installed: INSTALLED });
  const socket = open(copying.h);
  feed(socket, request(nbd.NBD_CMD_WRITE, 1, SIZE - 700, 700), Buffer.alloc(700, 9));
  copying.run();
  copying.start('reconcile');
  copying.run();
  assert.equal(copying.outcome, null);
  assert.ok(copying.content.equals(copying.source));
});

test('a repair writes only what does not match its checksum', () => {
  const copying = new Copying(2, { installed: INSTALLED });
  const socket = open(copying.h);
  feed(socket, request(nbd.NBD_CMD_WRITE, 1, 0, 65_536), Buffer.alloc(65_536, 9));
  copying.run();
  const file = copying.h.io.files.get(FD)!;
  file.fill(0xee, 8192, 12_288);
  copying.source.fill(5, 0, 65_536);
  copying.start('repair');
  copying.run();
  assert.equal(copying.outcome, null);
  const expected = Buffer.alloc(65_536, 9);
  expected.fill(5, 8192, 12_288);
  assert.ok(copying.content.subarray(0, 65_536).equals(expected));
  feed(socket, request(nbd.NBD_CMD_READ, 2, 0, 65_536));
  copying.run();
  assert.deepEqual(replies(socket, new Map([[2, 65_536]])).get(2)!.data, expected);
});

test('whatever ends it, it is answered once, and gives everything back', () => {
  for (let seed = 0; seed < 20; seed++) {
    const copying = new Copying(seed);
    const { h } = copying;
    h.settle();
    const freeBytes = h.stats[Stat.poolFreeBytes];
    copying.start('rebuild');
    for (let i = h.random() % 100; i > 0; i--) copying.step();
    const isOver = copying.outcome !== undefined;
    switch (seed % 5) {
      case 0:
        h.server.onMessage({ type: 'endCopy', request: REQUEST, id: 'vol', reason: 'a reason' });
        break;
      case 1: {
        const installed = { ...REBUILDING, generation: 2, epoch: 3 };
        h.server.onMessage({ type: 'install', request: 9, id: 'vol', installed, cut: 'olderGenerations' });
        break;
      }
      case 2:
        h.io.fault = (operation) => (operation === 'write' || operation === 'fallocate' ? 5 : 0);
        break;
      case 3:
        h.server.onMessage({ type: 'retire', request: 9, id: 'vol' });
        break;
      default:
        while (copying.pulls.length === 0 && copying.outcome === undefined) if (!copying.step()) break;
        for (const pull of copying.pulls.splice(0)) copying.answer(pull, 'the source went away');
    }
    copying.run();
    const ends = h.posted.filter((message) => message.type === 'copied');
    assert.equal(ends.length, 1, `seed ${seed}`);
    if (!isOver) assert.match(copying.outcome ?? '', REASONS[seed % 5]!, `seed ${seed}`);
    h.server.onBatchEnd();
    assert.equal(h.stats[Stat.poolFreeBytes], freeBytes, `seed ${seed}`);
    if (seed % 5 === 3)
      assert.ok(h.posted.some((message) => message.type === 'done' && message.request === 9));
  }
});

test('a rate is kept, and one chunk at a time is at work while there are requests', () => {
  const copying = new Copying(3);
  const { h } = copying;
  h.server.onTick(1000);
  copying.start('rebuild', MIB);
  copying.run();
  assert.equal(copying.outcome, undefined);
  let nowMs = 1000;
  while (copying.outcome === undefined && nowMs < 20_000) {
    nowMs += 100;
    h.server.onTick(nowMs);
    copying.run();
  }
  assert.equal(copying.outcome, null);
  assert.ok(nowMs > 3200 && nowMs < 4500, `3 MiB at 1 MiB/s took ${nowMs - 1000} ms`);

  const busy = new Copying(4);
  const socket = open(busy.h);
  busy.h.io.stuck.add(FD);
  feed(socket, request(nbd.NBD_CMD_READ, 1, 0, 4096));
  busy.h.settle();
  busy.start('rebuild');
  busy.h.settle();
  const pulled = (): number => busy.h.posted.filter(({ type }) => type === 'pull').length;
  assert.equal(pulled(), 1);
  busy.h.io.stuck.clear();
  busy.h.settle();
  busy.h.server.onTick(1);
  assert.equal(pulled(), COPY_CHUNKS);
});
