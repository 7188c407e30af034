/**
 * Nothing is left on the heap per request: requests by the hundred thousand through mirror, links and ring against a real
 * server on loopback. Without ublk, whose commands are two more SQEs of the same kind. BLOCKWIRE_HEAP_REQUESTS sets how many.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { allocateRegion } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import { Ring } from '@blockwire/native/ring.ts';
import { listenTcp } from '@blockwire/native/sockets.ts';
import { createCounters, openCounters, openLatency } from './counters.ts';
import { LatencyRecorder, replicaLatency } from './latency.ts';
import { MarkRows } from './mark-rows.ts';
import { Mirror, type MirrorHost } from './mirror.ts';
import { Payload } from './payload.ts';
import { createRanges, SharedRanges } from './ranges.ts';
import { NbdReplicaLink } from './replica-link.ts';
import { Operation, RequestTable } from './request.ts';
import { ChainTransmitter } from './transmit.ts';

const REQUESTS = Number(process.env.BLOCKWIRE_HEAP_REQUESTS ?? 200_000);
const WARM_UP = 50_000;
const DEPTH = 64;
const BLOCK_BYTES = 4096;
const SIZE_BYTES = 64 * 1024 * 1024;
/** Over all requests: what the collector and the compiler do by themselves, far from a byte a request at a million. */
const GROWTH_BYTES_MAX = 256 * 1024;

class Load implements MirrorHost {
  readonly ring = new Ring({ entries: 512, clock: true });
  readonly requests = new RequestTable(DEPTH);
  readonly memory = allocateRegion(DEPTH * BLOCK_BYTES);
  readonly payload = new Payload({
    depth: DEPTH,
    own: this.memory,
    strideBytes: BLOCK_BYTES,
    ownBytesMax: BLOCK_BYTES,
    userCopy: null,
  });
  readonly link: NbdReplicaLink;
  readonly mirror: Mirror;
  /** Tags that are done, to be started again at the end of the batch. */
  readonly #done = new Uint16Array(DEPTH);
  #doneCount = 0;
  completed = 0;
  errors = 0;
  #next = 0;

  constructor(port: number) {
    this.link = new NbdReplicaLink({
      ring: this.ring,
      requests: this.requests,
      payload: this.payload,
      ladder: {
        send: 'plain',
        zeroCopyBytesMin: 0,
        receive: 'recv',
        buffers: 'auto',
        smallBytesMax: BLOCK_BYTES,
      },
      counters: openCounters(createCounters()),
      makeTransmit: (options) => new ChainTransmitter(options),
      replica: 0,
      name: 'heap/att/0',
      attemptsBefore: 0,
      marks: new MarkRows(this.requests),
      sizeBytes: SIZE_BYTES,
      timeoutMs: 10_000,
      latency: new LatencyRecorder({
        numbers: openLatency(createCounters()),
        source: replicaLatency(0),
        clock: this.ring.clock,
        requests: this.requests,
      }),
      onChange: () => {},
    });
    const ranges = new SharedRanges({
      shared: createRanges(2, DEPTH),
      queueId: 0,
      queueCount: 2,
      queueDepth: DEPTH,
      wake: () => {},
    });
    this.mirror = new Mirror({
      requests: this.requests,
      links: [this.link],
      host: this,
      inSync: 1,
      ranges,
    });
    const target = { nodeId: 'node', address: '127.0.0.1', port, exportName: '', isNode: false, epoch: 1 };
    this.link.aim(target);
    this.link.start(this.mirror, performance.now());
  }

  complete(tag: number, result: number): void {
    if (result !== BLOCK_BYTES) this.errors++;
    this.completed++;
    this.#done[this.#doneCount++] = tag;
  }

  reportLost(): void {}

  start(tag: number): void {
    const block = this.#next++;
    this.requests.operation[tag] = (block & 1) === 0 ? Operation.READ : Operation.WRITE;
    this.requests.flags[tag] = 0;
    this.requests.offsetBytes[tag] = (block % (SIZE_BYTES / BLOCK_BYTES)) * BLOCK_BYTES;
    this.requests.lengthBytes[tag] = BLOCK_BYTES;
    this.mirror.start(tag);
  }

  turn(): void {
    const count = this.#doneCount;
    this.#doneCount = 0;
    for (let i = 0; i < count; i++) this.start(this.#done[i]!);
    this.link.flush();
    this.ring.enter(1, 1000);
    this.ring.dispatch();
    this.payload.run();
  }

  runUntil(completed: number): void {
    while (this.completed < completed) this.turn();
  }
}

test(`${REQUESTS} requests leave nothing on the heap`, async (t) => {
  const { fd, port } = listenTcp({ address: '127.0.0.1', port: 0 }, 1);
  native.close(fd);
  const server = spawn(
    'nbdkit',
    ['-f', '-i', '127.0.0.1', '-p', String(port), 'memory', String(SIZE_BYTES)],
    {
      stdio: 'ignore',
    },
  );
  try {
    const load = new Load(port);
    while (!load.link.up) {
      load.link.tick(performance.now());
      load.turn();
      await sleep(1);
    }
    for (let tag = 0; tag < DEPTH; tag++) load.start(tag);
    load.runUntil(WARM_UP);
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    collect();
    const before = process.memoryUsage().heapUsed;
    load.runUntil(WARM_UP + REQUESTS);
    collect();
    const growth = process.memoryUsage().heapUsed - before;
    t.diagnostic(`heap growth: ${growth} bytes`);
    assert.equal(load.errors, 0);
    assert.ok(growth < GROWTH_BYTES_MAX, `the heap grew by ${growth} bytes in ${REQUESTS} requests`);
  } finally {
    server.kill('SIGKILL');
  }
});
