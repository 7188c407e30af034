import assert from 'node:assert/strict';
import { it } from 'node:test';
import { encodeFrame, FrameDecoder, PAYLOAD_BYTES_MAX } from './frames.ts';

const frames = [
  { type: 1, id: 7, payload: Buffer.from('hello') },
  { type: 18, id: 0xffffffff, payload: Buffer.alloc(0) },
  { type: 17, id: 2, payload: Buffer.alloc(100_000, 'x') },
];
const stream = Buffer.concat(frames.map(({ type, id, payload }) => encodeFrame(type, id, payload)));

for (const chunkBytes of [1, 3, 9, 4096, stream.length]) {
  it(`decodes what was encoded, in chunks of ${chunkBytes} bytes`, () => {
    const decoder = new FrameDecoder();
    const decoded = [];
    for (let at = 0; at < stream.length; at += chunkBytes) {
      decoded.push(...decoder.push(stream.subarray(at, at + chunkBytes)));
    }
    assert.deepEqual(decoded, frames);
  });
}

it('refuses a length that no frame has', () => {
  const long = Buffer.alloc(9);
  long.writeUInt32BE(5 + PAYLOAD_BYTES_MAX + 1, 0);
  assert.throws(() => new FrameDecoder().push(long), RangeError);
  assert.throws(() => new FrameDecoder().push(Buffer.alloc(9)), RangeError);
  assert.throws(() => encodeFrame(1, 1, Buffer.alloc(PAYLOAD_BYTES_MAX + 1)), RangeError);
});
