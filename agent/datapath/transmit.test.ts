import assert from 'node:assert/strict';
import { readSync } from 'node:fs';
import { afterEach, beforeEach, test } from 'node:test';
import { allocateRegion } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import { Ring } from '@blockwire/native/ring.ts';
import { IoringCqe, IoringOp, Iosqe, MSG_MORE } from '@blockwire/native/uapi/io-uring.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import { CounterIndex, createCounters, openCounters } from './counters.ts';
import type { DatapathLadder } from './messages.ts';
import { Payload } from './payload.ts';
import { Operation, RequestTable } from './request.ts';
import { ChainTransmitter, TransmitOp } from './transmit.ts';

const DEPTH = 16;
const SMALL = 4096;
const LARGE = 65536;
const HUGE = 262144;
const NOTIFICATION = -(2 ** 31);
const EAGAIN = 11;

let ring: Ring;
let requests: RequestTable;
let counters: Float64Array;
let payload: Payload;
let transmitter: ChainTransmitter;

beforeEach(() => {
  ring = new Ring({ entries: 128 });
  requests = new RequestTable(DEPTH);
  counters = openCounters(createCounters());
  const ladder: DatapathLadder = {
    send: 'auto',
    zeroCopyBytesMin: HUGE,
    receive: 'recv',
    buffers: 'auto',
    smallBytesMax: SMALL,
  };
  payload = new Payload({
    depth: DEPTH,
    own: allocateRegion(DEPTH * SMALL),
    strideBytes: SMALL,
    ownBytesMax: SMALL,
    userCopy: null,
  });
  transmitter = new ChainTransmitter({ ring, requests, payload, ladder, counters });
});
afterEach(() => ring.close());

/** Starts a chain of requests and returns the SQEs that it is made of; nothing is submitted. */
function chain(...wanted: [operation: number, length: number][]) {
  for (const [tag, [operation, length]] of wanted.entries()) {
    requests.operation[tag] = operation;
    requests.lengthBytes[tag] = length;
  }
  const first = ring.writtenCount;
  const queue = Uint16Array.from({ length: DEPTH }, (_, tag) => tag);
  assert.equal(transmitter.start(-1, 1, 7, queue, 0, wanted.length), null);
  return Array.from({ length: ring.writtenCount - first }, (_, index) => {
    const at = ((first + index) % ring.entries) * 16;
    const head = ring.sqes[at]!;
    return {
      opcode: head & 0xff,
      linked: ((head >> 8) & Iosqe.IO_LINK) !== 0,
      silent: ((head >> 8) & Iosqe.CQE_SKIP_SUCCESS) !== 0,
      more: (ring.sqes[at + 7]! & MSG_MORE) !== 0,
      length: ring.sqes[at + 6]!,
      operation: ring.sqes[at + 9]! & 0xff,
    };
  });
}

const part = { linked: true, silent: true, more: true, operation: TransmitOp.PART };
const last = { linked: false, silent: false, more: false, operation: TransmitOp.LAST };
const atOnce = { linked: false, silent: true, more: false, operation: TransmitOp.AT_ONCE };

test('headers of several reads go out as one piece', () => {
  assert.deepEqual(chain([Operation.READ, LARGE], [Operation.READ, SMALL], [Operation.FLUSH, 0]), [
    { ...atOnce, opcode: IoringOp.SEND, length: 3 * 28 },
  ]);
});

test('small writes are one message, whatever their number', () => {
  const sqes = chain([Operation.WRITE, SMALL], [Operation.WRITE, 512], [Operation.TRIM, LARGE]);
  assert.deepEqual(sqes, [{ ...atOnce, opcode: IoringOp.SENDMSG, length: 1 }]);
});

/** A chain of small writes on one end of a socket pair; what the peer reads of it, and what completed, until it ended. */
function exchange(count: number) {
  const [here, there] = native.socketPair() as [number, number];
  for (const fd of [here, there]) native.setSocketOption(fd, 1, 7, new Int32Array([SMALL])); // SO_SNDBUF
  payload.own!.bytes.forEach((_, i, bytes) => {
    bytes[i] = i % 251;
  });
  for (let tag = 0; tag < count; tag++) {
    requests.operation[tag] = Operation.WRITE;
    requests.lengthBytes[tag] = SMALL;
  }
  const operations: number[] = [];
  const handler = ring.addHandler({
    complete(operation, data, result, flags) {
      operations.push(operation);
      assert.equal(transmitter.complete(operation, data, result, flags), null);
    },
  });
  const queue = Uint16Array.from({ length: DEPTH }, (_, tag) => tag);
  transmitter.start(here, handler, 7, queue, 0, count);
  transmitter.settle();
  assert.equal(transmitter.busy, true, 'nothing is submitted yet');
  const received: Buffer[] = [];
  const wanted = count * (28 + SMALL);
  const buffer = Buffer.alloc(SMALL);
  let receivedBytes = 0;
  do {
    ring.submit();
    ring.dispatch();
    transmitter.settle();
    const bytes = readSync(there, buffer);
    received.push(Buffer.from(buffer.subarray(0, bytes)));
    receivedBytes += bytes;
  } while (receivedBytes < wanted);
  ring.submit();
  ring.dispatch();
  transmitter.settle();
  native.close(here);
  native.close(there);
  return { operations, received: Buffer.concat(received) };
}

/** What a chain of `exchange` is on the wire. */
function wire(count: number): Buffer {
  const pieces: Uint8Array[] = [];
  for (let tag = 0; tag < count; tag++) {
    const header = Buffer.alloc(28);
    const view = new DataView(header.buffer, header.byteOffset, 28);
    encodeRequest(view, 0, 0, Operation.WRITE, 7, tag, 0, SMALL);
    pieces.push(header, payload.own!.bytes.subarray(tag * SMALL, (tag + 1) * SMALL));
  }
  return Buffer.concat(pieces);
}

test('a message without pages ends with its submission, and nothing completes', () => {
  const { operations, received } = exchange(1);
  assert.deepEqual(operations, []);
  assert.equal(transmitter.busy, false);
  assert.deepEqual(received, wire(1));
});

test('what the socket has no room for is sent by a message that waits', () => {
  const { operations, received } = exchange(9);
  assert.deepEqual(operations, [TransmitOp.AT_ONCE, TransmitOp.LAST]);
  assert.equal(transmitter.busy, false);
  assert.deepEqual(received, wire(9));
});

test('a socket without any room: all of it waits', () => {
  chain([Operation.READ, SMALL], [Operation.WRITE, SMALL]);
  const before = ring.pendingCount;
  assert.equal(transmitter.complete(TransmitOp.AT_ONCE, 0, -EAGAIN, 0), null);
  assert.equal(ring.pendingCount, before + 1);
  transmitter.settle();
  assert.deepEqual([transmitter.busy, transmitter.awaitsCompletion], [true, true]);
  assert.equal(transmitter.complete(TransmitOp.LAST, 0, 2 * 28 + SMALL, 0), null);
  assert.equal(transmitter.busy, false);
});

test('a message without pages that fails breaks the connection', () => {
  chain([Operation.READ, SMALL]);
  assert.match(transmitter.complete(TransmitOp.AT_ONCE, 0, -104, 0)!, /ECONNRESET/);
  assert.equal(transmitter.busy, false);
});

test('pages are linked behind what comes before them; zero copy only from its threshold up, and never silently', () => {
  const sqes = chain([Operation.WRITE, SMALL], [Operation.WRITE, HUGE], [Operation.WRITE, LARGE]);
  assert.deepEqual(sqes, [
    { ...part, opcode: IoringOp.SENDMSG, length: 1 },
    {
      ...part,
      opcode: IoringOp.SEND_ZC,
      length: HUGE,
      silent: false,
      operation: TransmitOp.ZERO_COPY_PART,
    },
    { ...part, opcode: IoringOp.SEND, length: 28 },
    { ...last, opcode: IoringOp.SEND, length: LARGE },
  ]);
  assert.equal(transmitter.notifications, 1);
});

test('a notification comes after the chain, and tells whether the kernel copied', () => {
  chain([Operation.WRITE, HUGE], [Operation.WRITE, HUGE]);
  assert.equal(transmitter.complete(TransmitOp.ZERO_COPY_PART, 0, HUGE, IoringCqe.MORE), null);
  assert.equal(transmitter.complete(TransmitOp.ZERO_COPY_LAST, 1, HUGE, IoringCqe.MORE), null);
  assert.deepEqual([transmitter.busy, transmitter.notifications], [false, 2]);
  transmitter.complete(TransmitOp.ZERO_COPY_PART, 0, 0, IoringCqe.NOTIF);
  transmitter.complete(TransmitOp.ZERO_COPY_LAST, 1, NOTIFICATION, IoringCqe.NOTIF);
  assert.equal(transmitter.notifications, 0);
  assert.equal(counters[CounterIndex.zeroCopySends], 2);
  assert.equal(counters[CounterIndex.zeroCopyCopied], 1);
});

test('a connection on which the kernel copies after all does without zero copy, unless it is a new one', () => {
  const send = (): number => {
    const [, pages] = chain([Operation.WRITE, HUGE]);
    const { opcode, operation } = pages!;
    transmitter.complete(operation, 0, HUGE, IoringCqe.MORE);
    if (opcode === IoringOp.SEND_ZC) transmitter.complete(operation, 0, NOTIFICATION, IoringCqe.NOTIF);
    return opcode;
  };
  for (let i = 0; i < 64; i++) assert.equal(send(), IoringOp.SEND_ZC);
  assert.equal(send(), IoringOp.SEND);
  transmitter.reset();
  assert.equal(send(), IoringOp.SEND_ZC);
});

test('a silent part that fails ends the chain: nothing behind it is reported', () => {
  chain([Operation.WRITE, SMALL], [Operation.WRITE, LARGE]);
  assert.match(transmitter.complete(TransmitOp.PART, 0, -32, 0)!, /EPIPE/);
  assert.equal(transmitter.busy, false);
});

test('behind a failed zero-copy send every part is reported, the last one ends the chain', () => {
  chain([Operation.WRITE, HUGE], [Operation.WRITE, LARGE], [Operation.FLUSH, 0]);
  assert.match(transmitter.complete(TransmitOp.ZERO_COPY_PART, 0, -104, IoringCqe.MORE)!, /ECONNRESET/);
  assert.equal(transmitter.complete(TransmitOp.PART, 0, -125, 0), null);
  assert.equal(transmitter.complete(TransmitOp.PART, 1, -125, 0), null);
  assert.equal(transmitter.busy, true);
  assert.equal(transmitter.complete(TransmitOp.LAST, 0, -125, 0), null);
  assert.equal(transmitter.busy, false);
  assert.equal(transmitter.notifications, 1);
});

test('a last part that is short puts the stream out of step', () => {
  chain([Operation.WRITE, LARGE], [Operation.READ, SMALL]);
  assert.match(transmitter.complete(TransmitOp.LAST, 0, 20, 0)!, /cut short after 20 bytes/);
});
