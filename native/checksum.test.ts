import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allocateRegion } from './memory.ts';
import { native } from './native.ts';

/** Folding, the instruction, the table: as src/checksum.cc numbers them. */
const CRC32C_METHODS = [0, 1, 2];

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

test('every method gives a block the checksum of the table, wherever it begins', () => {
  const block = 4096;
  const region = allocateRegion(8 * block);
  const bytes = region.bytes;
  let state = 1;
  for (let i = 0; i < bytes.length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    bytes[i] = state >>> 24;
  }
  const count = 7;
  const out = new Uint32Array(count);
  for (const method of CRC32C_METHODS) {
    for (let shift = 0; shift < 64; shift++) {
      const starts = Array.from({ length: count }, (_, i) => i * block + ((shift * (i + 1)) % block));
      const addresses = Float64Array.from(starts, (start) => region.address + start);
      out.fill(0);
      if (!native.crc32cBlocksBy(addresses, count, block, out, method)) continue;
      for (const [i, start] of starts.entries()) {
        assert.equal(
          out[i],
          native.crc32cSoftware(bytes.subarray(start, start + block), 0),
          `method ${method}`,
        );
      }
    }
  }
  region.release();
});

test('every method sees each bit of a block', () => {
  const block = 4096;
  const region = allocateRegion(block);
  const addresses = Float64Array.of(region.address);
  const out = new Uint32Array(1);
  for (const method of CRC32C_METHODS) {
    region.bytes.fill(0);
    if (!native.crc32cBlocksBy(addresses, 1, block, out, method)) continue;
    assert.equal(out[0], 0x98f94189);
    for (let bit = 0; bit < 8 * block; bit += method === CRC32C_METHODS.at(-1) ? 61 : 1) {
      region.bytes[bit >> 3] = 1 << (bit & 7);
      native.crc32cBlocksBy(addresses, 1, block, out, method);
      assert.equal(out[0], native.crc32c(region.bytes, 0), `method ${method}, bit ${bit}`);
      region.bytes[bit >> 3] = 0;
    }
  }
  region.release();
});

test('blocks of other sizes have their checksum too', () => {
  const region = allocateRegion(4096);
  region.bytes.forEach((_, i) => {
    region.bytes[i] = i * 7;
  });
  const out = new Uint32Array(4);
  for (const size of [8, 64, 256, 1000]) {
    const addresses = Float64Array.from({ length: 4 }, (_, i) => region.address + i * size);
    native.crc32cBlocks(addresses, 4, size, out);
    for (let i = 0; i < 4; i++) {
      assert.equal(out[i], native.crc32cSoftware(region.bytes.subarray(i * size, (i + 1) * size), 0));
    }
  }
  region.release();
});
