import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allocateRegion } from './memory.ts';
import { native } from './native.ts';

test('CRC32C gives the values of RFC 3720, appendix B.4', () => {
  assert.equal(native.crc32c(new Uint8Array(32), 0), 0x8a9136aa);
  assert.equal(native.crc32c(new Uint8Array(32).fill(0xff), 0), 0x62a8ab43);
  assert.equal(
    native.crc32c(
      Uint8Array.from({ length: 32 }, (_, i) => i),
      0,
    ),
    0x46dd794e,
  );
});

test('the table and the instruction agree at every length, and checksums continue', () => {
  const data = Uint8Array.from({ length: 300 }, (_, i) => (i * 131 + 7) & 0xff);
  for (let length = 0; length <= data.length; length++) {
    const part = data.subarray(0, length);
    const whole = native.crc32c(part, 0);
    assert.equal(native.crc32cSoftware(part, 0), whole);
    const half = length >> 1;
    assert.equal(native.crc32c(part.subarray(half), native.crc32c(part.subarray(0, half), 0)), whole);
  }
});

test('a batch of blocks gets the checksum of each', () => {
  const block = 4096;
  const region = allocateRegion(8 * block);
  for (let i = 0; i < region.bytes.length; i++) region.bytes[i] = (i * 31 + (i >> 12)) & 0xff;
  for (let count = 0; count <= 8; count++) {
    const addresses = Float64Array.from({ length: count }, (_, i) => region.address + i * block);
    const out = new Uint32Array(count);
    native.crc32cBlocks(addresses, count, block, out);
    for (let i = 0; i < count; i++) {
      assert.equal(out[i], native.crc32c(region.bytes.subarray(i * block, (i + 1) * block), 0));
    }
  }
  region.release();
});
