/** Links of a mirror on a real ring, for tests against NBD servers on loopback, without ublk. */
import assert from 'node:assert/strict';
import { createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { allocateRegion } from '@blockwire/native/memory.ts';
import { Ring } from '@blockwire/native/ring.ts';
import { createCounters, openCounters, openLatency } from '../datapath/counters.ts';
import { LatencyRecorder, replicaLatency } from '../datapath/latency.ts';
import { MarkRows } from '../datapath/mark-rows.ts';
import type { DatapathLadder } from '../datapath/messages.ts';
import { type Fence, Mirror, type MirrorHost } from '../datapath/mirror.ts';
import { Payload } from '../datapath/payload.ts';
import { NbdReplicaLink } from '../datapath/replica-link.ts';
import { RequestTable } from '../datapath/request.ts';
import { ChainTransmitter, type Transmit, type TransmitOptions } from '../datapath/transmit.ts';

export const DEPTH = 32;
export const STRIDE = 64 * 1024;
export const SIZE = 16 * 1024 * 1024;
/** Reads of 512 and 4096 bytes come in batches, those of 4608 and 65536 directly. */
export const LADDER: DatapathLadder = {
  send: 'plain',
  zeroCopyBytesMin: 0,
  receive: 'recv',
  buffers: 'auto',
  smallBytesMax: 4096,
};

export interface LinkBenchOptions {
  readonly timeoutMs?: number;
  readonly ladder?: DatapathLadder;
  readonly ownBytesMax?: number;
  readonly makeTransmit?: (options: TransmitOptions) => Transmit;
  /** With one, the servers are nodes: they are told the session, and marks. */
  readonly exportName?: string;
}

/** A ring, a mirror and its links, pumped by the test. */
export class LinkBench implements MirrorHost {
  readonly ring = new Ring({ entries: 256, clock: true });
  readonly latency = openLatency(createCounters());
  readonly requests = new RequestTable(DEPTH);
  readonly marks = new MarkRows(this.requests);
  readonly memory = allocateRegion(DEPTH * STRIDE);
  readonly payload: Payload;
  readonly results = new Map<number, number>();
  readonly changes: { up: boolean; reason: string; refusal: string | null }[] = [];
  readonly passed: Fence[] = [];
  readonly lost: string[] = [];
  readonly links: NbdReplicaLink[];
  readonly mirror: Mirror;
  /** The links' clock. */
  nowMs: () => number = () => performance.now();
  /** Told what passes as well. */
  onFence: (fence: Fence) => void = () => {};
  readonly #options: LinkBenchOptions;

  constructor(ports: readonly number[], options: LinkBenchOptions = {}) {
    const { ownBytesMax = STRIDE } = options;
    this.#options = options;
    this.payload = new Payload({
      depth: DEPTH,
      own: this.memory,
      strideBytes: STRIDE,
      ownBytesMax,
      userCopy: null,
    });
    this.links = ports.map((_, replica) => this.makeLink(replica));
    for (const [replica, port] of ports.entries()) this.aim(replica, port, 1);
    const inSync = (1 << ports.length) - 1;
    this.mirror = new Mirror({ requests: this.requests, links: this.links, host: this, inSync });
    for (const link of this.links) link.start(this.mirror, performance.now());
  }

  makeLink(replica: number): NbdReplicaLink {
    const { timeoutMs = 2000, ladder = LADDER } = this.#options;
    const { makeTransmit = (parts) => new ChainTransmitter(parts) } = this.#options;
    return new NbdReplicaLink({
      ring: this.ring,
      requests: this.requests,
      payload: this.payload,
      ladder,
      counters: openCounters(createCounters()),
      makeTransmit,
      replica,
      name: `bench/att/${replica}`,
      attemptsBefore: 0,
      marks: this.marks,
      sizeBytes: SIZE,
      timeoutMs,
      latency: new LatencyRecorder({
        numbers: this.latency,
        source: replicaLatency(replica),
        clock: this.ring.clock,
        requests: this.requests,
      }),
      onChange: (_replica, up, reason, refusal) => this.changes.push({ up, reason, refusal }),
    });
  }

  /** Where a link connects from its next attempt on. */
  aim(replica: number, port: number, epoch: number): void {
    const { exportName = '' } = this.#options;
    this.links[replica]!.aim({
      ...{ nodeId: `node-${replica}`, address: '127.0.0.1', port, epoch },
      ...{ exportName, isNode: exportName !== '' },
    });
  }

  complete(tag: number, result: number): void {
    assert.ok(!this.results.has(tag), `tag ${tag} completed twice`);
    this.results.set(tag, result);
  }

  fencePassed(fence: Fence): void {
    this.passed.push(fence);
    this.onFence(fence);
  }

  reportLost(_replica: number, reason: string): void {
    this.lost.push(reason);
  }

  buffer(tag: number): Uint8Array {
    return this.memory.bytes.subarray(tag * STRIDE, (tag + 1) * STRIDE);
  }

  start(tag: number, operation: number, offset: number, length: number): void {
    this.requests.operation[tag] = operation;
    this.requests.flags[tag] = 0;
    this.requests.offsetBytes[tag] = offset;
    this.requests.lengthBytes[tag] = length;
    this.mirror.start(tag);
  }

  /** Runs the loop, letting the test's own servers breathe, until `done`. */
  async pump(done: () => boolean, what: string): Promise<void> {
    const deadlineMs = performance.now() + 20_000;
    while (!done()) {
      assert.ok(performance.now() < deadlineMs, `timed out: ${what}`);
      const nowMs = this.nowMs();
      for (const link of this.links) {
        link.tick(nowMs);
        link.flush();
      }
      this.ring.enter(1, 5);
      this.ring.dispatch();
      this.payload.run();
      await sleep(0);
    }
  }

  async close(): Promise<void> {
    for (const link of this.links) link.close();
    await this.pump(() => this.links.every((link) => link.idle), 'links end');
    this.ring.close();
    this.memory.release();
  }
}

/** A server that says what `script` says to whoever connects. */
export async function startLiar(script: (socket: Socket) => void): Promise<{ port: number; server: Server }> {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    script(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  assert.ok(typeof address === 'object' && address !== null);
  return { port: address.port, server };
}

/** Serves the handshake like nbdkit would: fixed newstyle, GO, then hands the socket on. */
export function handshake(socket: Socket, transmission: (request: Buffer) => void): void {
  socket.write(Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]));
  let ready = false;
  socket.on('data', (bytes: Buffer) => {
    if (ready) {
      transmission(bytes);
      return;
    }
    // Client flags (4) and one NBD_OPT_GO, in one or two segments.
    if (bytes.length <= 4) return;
    const reply = (type: number, data: Buffer): Buffer => {
      const header = Buffer.alloc(20);
      header.writeBigUInt64BE(0x0003_e889_0455_65a9n);
      header.writeUInt32BE(7, 8);
      header.writeUInt32BE(type, 12);
      header.writeUInt32BE(data.length, 16);
      return Buffer.concat([header, data]);
    };
    const info = Buffer.alloc(12);
    info.writeBigUInt64BE(BigInt(SIZE), 2);
    info.writeUInt16BE(0b1101, 10); // HAS_FLAGS, SEND_FLUSH, SEND_FUA
    ready = true;
    socket.write(Buffer.concat([reply(3, info), reply(1, Buffer.alloc(0))]));
  });
}
