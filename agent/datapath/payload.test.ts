import assert from 'node:assert/strict';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { allocateRegion } from '@blockwire/native/memory.ts';
import { Payload } from './payload.ts';

const DEPTH = 8;
const STRIDE = 4096;
/** include/uapi/linux/ublk_cmd.h: where a tag's data is in /dev/ublkcN. */
function position(queueId: number, tag: number): number {
  return 0x8000_0000 + tag * 2 ** 25 + queueId * 2 ** 41;
}

// A sparse file stands for the device: the calls are the same.
let directory: string;
let path: string;
let fd: number;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'blockwire-payload-'));
  path = join(directory, 'device');
  fd = openSync(path, constants.O_RDWR | constants.O_CREAT);
});
after(() => {
  closeSync(fd);
  rmSync(directory, { recursive: true });
});

function payloadOf(options: { fd: number; queueId: number } | null): Payload {
  const own = allocateRegion(DEPTH * STRIDE);
  return new Payload({ depth: DEPTH, own, strideBytes: STRIDE, ownBytesMax: STRIDE, userCopy: options });
}

test('a write’s payload is brought from its tag’s place, a read’s goes there', () => {
  const payload = payloadOf({ fd, queueId: 1 });
  const out = Buffer.alloc(512, 0x5a);
  writeSync(fd, out, 0, 512, position(1, 7));
  payload.fetch(7, 512);
  assert.equal(payload.own!.bytes[7 * STRIDE], 0, 'not before run');
  payload.run();
  assert.equal(Buffer.compare(payload.own!.bytes.subarray(7 * STRIDE, 7 * STRIDE + 512), out), 0);
  assert.equal(payload.takeFailure(7), false);

  const received = allocateRegion(STRIDE);
  received.bytes.fill(0x17);
  payload.deliver(3, received, 16, 1024);
  payload.run();
  const back = Buffer.alloc(1024);
  readSync(fd, back, 0, 1024, position(1, 3));
  assert.ok(back.every((byte) => byte === 0x17));
});

test('a copy that fails or is short is remembered for its tag, once', () => {
  const readOnly = openSync(path, constants.O_RDONLY);
  const payload = payloadOf({ fd: readOnly, queueId: 1 });
  payload.deliver(2, payload.own!, 0, 512);
  payload.deliver(4, payload.own!, 0, 512);
  // The file ends with the 512 bytes of tag 7.
  payload.fetch(7, 1024);
  payload.fetch(6, 512);
  payload.run();
  closeSync(readOnly);
  assert.deepEqual(
    [2, 4, 6, 7].map((tag) => payload.takeFailure(tag)),
    [true, true, false, true],
  );
  assert.equal(payload.takeFailure(2), false);
});

test('without USER_COPY small reads move within own memory, and nothing else is copied', () => {
  const payload = payloadOf(null);
  const received = allocateRegion(STRIDE);
  received.bytes.fill(0x33);
  payload.deliver(1, received, 100, 512);
  payload.fetch(2, 512);
  payload.deliver(3, payload.own!, 3 * STRIDE, 512);
  payload.run();
  assert.ok(payload.own!.bytes.subarray(STRIDE, STRIDE + 512).every((byte) => byte === 0x33));
  assert.equal(payload.own!.bytes[STRIDE + 512], 0);
});

test('payloads beyond own memory stay in the request’s pages', () => {
  const payload = new Payload({
    depth: DEPTH,
    own: null,
    strideBytes: 0,
    ownBytesMax: 0,
    userCopy: null,
  });
  assert.equal(payload.isOwn(512), false);
  assert.equal(payloadOf(null).isOwn(STRIDE), true);
  assert.equal(payloadOf(null).isOwn(STRIDE + 512), false);
});
