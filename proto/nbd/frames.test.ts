/** Golden frames of requests and replies, written by hand from the specification's tables. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reply from './reply.ts';
import * as request from './request.ts';

function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Runs an encoder at position 4 of a dirty buffer; gives what it wrote, and checks that it wrote nothing else. */
function written(encode: (view: DataView, at: number) => number): string {
  const bytes = new Uint8Array(128).fill(0xee);
  const length = encode(viewOf(bytes), 4);
  assert.deepEqual(bytes.subarray(0, 4), new Uint8Array(4).fill(0xee));
  assert.deepEqual(bytes.subarray(4 + length), new Uint8Array(124 - length).fill(0xee));
  return Buffer.from(bytes.subarray(4, 4 + length)).toString('hex');
}

const COOKIE = '8899aabb ccddeeff';
const COOKIE_HIGH = 0x8899aabb;
const COOKIE_LOW = 0xccddeeff;

test('a compact WRITE with FUA at 1 TiB + 4096 is decoded and encoded', () => {
  const golden = `25609513 0001 0001 ${COOKIE} 00000100 00001000 00020000`;
  const bytes = hex(`ffffff ${golden}`);
  const view = viewOf(bytes);
  assert.equal(request.requestMagic(view, 3), 0x25609513);
  assert.equal(request.requestFlags(view, 3), 1);
  assert.equal(request.requestType(view, 3), 1);
  assert.equal(request.requestCookieHigh(view, 3), COOKIE_HIGH);
  assert.equal(request.requestCookieLow(view, 3), COOKIE_LOW);
  assert.equal(request.requestOffset(view, 3), 2 ** 40 + 4096);
  assert.equal(request.requestLength(view, 3), 131072);
  const encoded = written((out, at) => {
    request.encodeRequest(out, at, 1, 1, COOKIE_HIGH, COOKIE_LOW, 2 ** 40 + 4096, 131072);
    return 28;
  });
  assert.equal(encoded, golden.replaceAll(' ', ''));
});

test('an extended WRITE_ZEROES of 6 GiB is decoded and encoded', () => {
  const golden = `21e41c71 0002 0006 ${COOKIE} 00000000 00000200 00000001 80000000`;
  const view = viewOf(hex(golden));
  assert.equal(request.requestMagic(view, 0), 0x21e41c71);
  assert.equal(request.extendedRequestLength(view, 0), 6 * 2 ** 30);
  const encoded = written((out, at) => {
    request.encodeExtendedRequest(out, at, 2, 6, COOKIE_HIGH, COOKIE_LOW, 512, 6 * 2 ** 30);
    return 32;
  });
  assert.equal(encoded, golden.replaceAll(' ', ''));
});

test('64-bit fields: the largest safe integer is read, anything above is flagged', () => {
  assert.equal(request.readUint64(viewOf(hex('001fffff ffffffff')), 0), Number.MAX_SAFE_INTEGER);
  assert.equal(request.readUint64(viewOf(hex('00200000 00000000')), 0), request.FIELD_INVALID);
  assert.equal(request.readUint64(viewOf(hex('ffffffff ffffffff')), 0), request.FIELD_INVALID);
  const bytes = new Uint8Array(8);
  for (const value of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 52 + 12345, Number.MAX_SAFE_INTEGER]) {
    request.writeUint64(viewOf(bytes), 0, value);
    assert.equal(viewOf(bytes).getBigUint64(0), BigInt(value));
    assert.equal(request.readUint64(viewOf(bytes), 0), value);
  }
});

test('replies are the bytes of the specification', () => {
  const { REPLY_SIMPLE, REPLY_STRUCTURED, REPLY_EXTENDED } = reply;
  const cases: [string, string, (view: DataView, at: number) => number][] = [
    [
      'simple error',
      `67446698 0000001c ${COOKIE}`,
      (v, at) => reply.encodeSimpleReply(v, at, 28, COOKIE_HIGH, COOKIE_LOW),
    ],
    [
      'done, simple',
      `67446698 00000000 ${COOKIE}`,
      (v, at) => reply.encodeDone(v, at, REPLY_SIMPLE, COOKIE_HIGH, COOKIE_LOW, 4096),
    ],
    [
      'done, structured',
      `668e33ef 0001 0000 ${COOKIE} 00000000`,
      (v, at) => reply.encodeDone(v, at, REPLY_STRUCTURED, COOKIE_HIGH, COOKIE_LOW, 4096),
    ],
    [
      'done, extended',
      `6e8a278c 0001 0000 ${COOKIE} 00000000 00001000 00000000 00000000`,
      (v, at) => reply.encodeDone(v, at, REPLY_EXTENDED, COOKIE_HIGH, COOKIE_LOW, 4096),
    ],
    [
      'error, structured',
      `668e33ef 0001 8001 ${COOKIE} 00000006 00000016 0000`,
      (v, at) => reply.encodeError(v, at, REPLY_STRUCTURED, 22, COOKIE_HIGH, COOKIE_LOW, 4096),
    ],
    [
      'error at an offset, structured',
      `668e33ef 0001 8002 ${COOKIE} 0000000e 00000005 0000 00000001 00000200`,
      (v, at) =>
        reply.encodeErrorOffset(
          v,
          at,
          REPLY_STRUCTURED,
          1,
          5,
          COOKIE_HIGH,
          COOKIE_LOW,
          2 ** 32,
          2 ** 32 + 512,
        ),
    ],
    [
      'data, structured',
      `668e33ef 0001 0001 ${COOKIE} 00001008 00000001 00000000`,
      (v, at) =>
        reply.encodeOffsetData(v, at, REPLY_STRUCTURED, 1, COOKIE_HIGH, COOKIE_LOW, 2 ** 32, 2 ** 32, 4096),
    ],
    [
      'data, extended',
      `6e8a278c 0000 0001 ${COOKIE} 00000001 00000000 00000000 00001008 00000001 00000800`,
      (v, at) =>
        reply.encodeOffsetData(
          v,
          at,
          REPLY_EXTENDED,
          0,
          COOKIE_HIGH,
          COOKIE_LOW,
          2 ** 32,
          2 ** 32 + 2048,
          4096,
        ),
    ],
    [
      'hole, structured',
      `668e33ef 0000 0002 ${COOKIE} 0000000c 00000000 00003000 00010000`,
      (v, at) => reply.encodeOffsetHole(v, at, REPLY_STRUCTURED, 0, COOKIE_HIGH, COOKIE_LOW, 0, 12288, 65536),
    ],
    [
      'block status of two extents',
      `668e33ef 0001 0005 ${COOKIE} 00000014 00000001 00001000 00000000 00002000 00000003`,
      (v, at) => {
        let end = at;
        end += reply.encodeBlockStatusHeader(v, end, REPLY_STRUCTURED, 1, COOKIE_HIGH, COOKIE_LOW, 0, 1, 2);
        end += reply.encodeBlockStatusExtent(v, end, 4096, 0);
        end += reply.encodeBlockStatusExtent(v, end, 8192, 3);
        return end - at;
      },
    ],
  ];
  for (const [name, golden, encode] of cases) assert.equal(written(encode), golden.replaceAll(' ', ''), name);
});

test('a client reads back every field of a reply', () => {
  const simple = viewOf(hex(`67446698 00000005 ${COOKIE}`));
  assert.equal(reply.replyMagic(simple, 0), 0x67446698);
  assert.equal(reply.simpleReplyError(simple, 0), 5);
  assert.equal(reply.replyCookieHigh(simple, 0), COOKIE_HIGH);
  assert.equal(reply.replyCookieLow(simple, 0), COOKIE_LOW);
  const chunk = viewOf(hex(`668e33ef 0001 0002 ${COOKIE} 0000000c 00000000 00003000 00010000`));
  assert.equal(reply.chunkFlags(chunk, 0), 1);
  assert.equal(reply.chunkType(chunk, 0), 2);
  assert.equal(reply.structuredChunkLength(chunk, 0), 12);
  assert.equal(reply.chunkDataOffset(chunk, 20), 12288);
  assert.equal(reply.chunkHoleLength(chunk, 20), 65536);
  const failed = viewOf(
    hex(`6e8a278c 0001 8001 ${COOKIE} 00000000 00001000 00000000 00000006 0000001c 0000`),
  );
  assert.equal(reply.extendedChunkLength(failed, 0), 6);
  assert.equal(reply.chunkError(failed, 32), 28);
});
