/** A whole worker on simulated sockets and files, and a client of it that speaks in bytes: for tests. */
import assert from 'node:assert/strict';
import { ClientHandshake } from '@blockwire/proto/nbd/client-handshake.ts';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import type { FromWorker } from '../data/messages.ts';
import { createStats } from '../data/stats.ts';
import type { Installed } from '../replication/admission.ts';
import { checksumFileSizeOf } from '../store/checksum-file.ts';
import { regionFileSizeOf } from '../store/region-table.ts';
import { connectionPoolBytes } from '../worker/connection-table.ts';
import { NodeServer } from '../worker/server.ts';
import { SimulatedIo, type SimulatedSocket, seededRandom } from './simulated-io.ts';

export const MIB = 2 ** 20;
export const FD = 7;
export const CHECKSUMS_FD = 8;
export const REGIONS_FD = 9;

export interface Harness {
  readonly io: SimulatedIo;
  readonly server: NodeServer;
  readonly posted: FromWorker[];
  readonly stats: Float64Array;
  readonly random: () => number;
  /** Runs until nothing can complete any more. */
  settle(): void;
}

export function harness(
  seed: number,
  options: {
    sizeBytes?: number;
    poolBytes?: number;
    canZeroRange?: boolean;
    installed?: Installed;
    nowSeconds?: () => number;
    /** Files by descriptor; without them, those of an empty replica. */
    images?: Map<number, Buffer>;
  } = {},
): Harness {
  const sizeBytes = options.sizeBytes ?? MIB;
  const poolBytes = options.poolBytes ?? 8 * MIB;
  const random = seededRandom(seed);
  const connectionsMax = 16;
  const io = new SimulatedIo(poolBytes + connectionPoolBytes(connectionsMax), random);
  io.canZeroRange = options.canZeroRange ?? true;
  const images = options.images ?? emptyFiles(sizeBytes);
  for (const [fd, content] of images) io.setFile(fd, content);
  const posted: FromWorker[] = [];
  const stats = createStats();
  const settings = { index: 0, listenFd: 3, poolBytes, slotCount: 512, connectionsMax, stats };
  const server = new NodeServer({
    settings,
    io,
    post: (message) => posted.push(message),
    onStopped: () => posted.push({ type: 'done', request: -1, errno: 0 }),
    ...(options.nowSeconds === undefined ? {} : { nowSeconds: options.nowSeconds }),
  });
  const settle = (): void => {
    for (let i = 0; i < 1_000_000; i++) {
      if (random() % 3 === 0) server.onBatchEnd();
      if (io.step()) continue;
      server.onBatchEnd();
      if (io.step()) continue;
      // Time passes only when nothing else can happen.
      if (server.waitUsMax === -1) return;
      io.clock[0]! += server.waitUsMax;
    }
    assert.fail('it never comes to rest');
  };
  server.start();
  const installed = options.installed ?? INSTALLED;
  server.onMessage({
    ...{ type: 'open', request: 1, id: 'vol', fd: FD, checksumsFd: CHECKSUMS_FD, regionsFd: REGIONS_FD },
    ...{ sizeBytes, installed, regions: regionsOf(images) },
  });
  settle();
  assert.equal(posted.at(-1)?.type, 'opened');
  const record = { id: 'vol', sizeBytes, installed, owner: 0, canPunchHole: true };
  server.onMessage({ type: 'publish', request: 2, record });
  return { io, server, posted, stats: new Float64Array(stats), random, settle };
}

export function feed(socket: SimulatedSocket, ...pieces: Uint8Array[]): void {
  socket.inbound = Buffer.concat([socket.inbound, ...pieces]);
}

/** What is installed if a test does not say otherwise. */
export const INSTALLED: Installed = {
  ...{ generation: 1, epoch: 1, role: 'inSync', joinedEpoch: 1, uncleanEpoch: null },
};

/** Ends a handshake; throws what the server says. */
export function open(h: Harness, exportName = 'vol'): SimulatedSocket {
  const socket = h.io.connect();
  const handshake = new ClientHandshake({ exportName, structuredReplies: false });
  while (handshake.result === null) {
    h.settle();
    assert.ok(!socket.serverClosed, 'the server hung up in the handshake');
    socket.outbound = socket.outbound.subarray(handshake.consume(socket.outbound));
    if (handshake.failure !== null) {
      socket.clientClosed = true;
      h.settle();
      throw new Error(handshake.failure.message);
    }
    feed(socket, handshake.takeOutput());
  }
  return socket;
}

export function request(type: number, cookie: number, offset: number, length: number, flags = 0): Buffer {
  const bytes = Buffer.alloc(28);
  encodeRequest(new DataView(bytes.buffer, bytes.byteOffset), 0, flags, type, 0, cookie, offset, length);
  return bytes;
}

/** Simple replies by cookie: error, and data for successful reads of the given lengths. */
export function replies(socket: SimulatedSocket, readLengths: Map<number, number>) {
  const found = new Map<number, { error: number; data: Buffer }>();
  let at = 0;
  while (at < socket.outbound.length) {
    assert.equal(socket.outbound.readUInt32BE(at), nbd.NBD_SIMPLE_REPLY_MAGIC);
    const error = socket.outbound.readUInt32BE(at + 4);
    const cookie = socket.outbound.readUInt32BE(at + 12);
    const length = error === 0 ? (readLengths.get(cookie) ?? 0) : 0;
    assert.ok(!found.has(cookie), `two replies to ${cookie}`);
    found.set(cookie, { error, data: socket.outbound.subarray(at + 16, at + 16 + length) });
    at += 16 + length;
  }
  assert.equal(at, socket.outbound.length);
  return found;
}

/** The files of an empty replica. */
function emptyFiles(sizeBytes: number): Map<number, Buffer> {
  return new Map([
    [FD, Buffer.alloc(Math.ceil(sizeBytes / 4096) * 4096)],
    [CHECKSUMS_FD, Buffer.alloc(checksumFileSizeOf(sizeBytes))],
    [REGIONS_FD, Buffer.alloc(regionFileSizeOf(sizeBytes))],
  ]);
}

/** The entries in the file of the region map. */
export function regionsOf(images: ReadonlyMap<number, Buffer>): Uint32Array {
  const file = images.get(REGIONS_FD)!;
  return new Uint32Array(file.buffer, file.byteOffset + 4096, (file.length - 4096) / 4).slice();
}
