import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HandshakeOutput } from './options.ts';

test('output grows at any field without losing a byte', () => {
  for (let lead = 500; lead <= 520; lead++) {
    const output = new HandshakeOutput();
    output
      .zeroes(lead)
      .uint16(0x1234)
      .uint32(0x5678_9abc)
      .uint64(2 ** 40 + 1)
      .string('end');
    const expected = Buffer.alloc(lead + 17);
    expected.writeUInt16BE(0x1234, lead);
    expected.writeUInt32BE(0x5678_9abc, lead + 2);
    expected.writeBigUInt64BE(2n ** 40n + 1n, lead + 6);
    expected.write('end', lead + 14);
    assert.deepEqual(Buffer.from(output.take()), expected, `after ${lead} bytes`);
  }
});

test('a field longer than the doubled buffer fits, and what is taken is gone', () => {
  const output = new HandshakeOutput();
  const long = new Uint8Array(5000).fill(7);
  assert.deepEqual(output.bytes(long).take(), long);
  assert.equal(output.isEmpty, true);
  assert.deepEqual(output.zeroes(8).take(), new Uint8Array(8));
});
