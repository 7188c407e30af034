/** Seeded nonsense against every decoder and both handshakes; the seed of a failure is in its message. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClientHandshake } from './client-handshake.ts';
import * as nbd from './constants.ts';
import { HandshakeOutput, OptionReader, writeOption, writeOptionReply } from './options.ts';
import * as reply from './reply.ts';
import * as request from './request.ts';
import { type ExportDescription, ServerHandshake } from './server-handshake.ts';

const DISK: ExportDescription = {
  name: 'disk',
  sizeBytes: 2 ** 30,
  transmissionFlags: nbd.NBD_FLAG_HAS_FLAGS,
  blockSizeMinBytes: 1,
  blockSizePreferredBytes: 4096,
  payloadSizeMaxBytes: 2 ** 25,
  metaContexts: ['base:allocation', 'blockwire:intent'],
};
const OPTIONS = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 0xffffffff];

/** mulberry32 */
function generator(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  };
}

function randomBytes(random: (limit: number) => number, count: number): Uint8Array {
  return Uint8Array.from({ length: count }, () => random(256));
}

test('output of any length comes out as it went in, wherever the buffer has to grow', () => {
  // The buffer begins with 512 bytes: fields of every size cross that edge, and the next ones, at every offset.
  for (let before = 490; before <= 520; before++) {
    const writers: [(output: HandshakeOutput) => HandshakeOutput, string][] = [
      [(output) => output.uint16(0x1234), '1234'],
      [(output) => output.uint32(0x12345678), '12345678'],
      [(output) => output.uint64(2 ** 52 + 1), '0010000000000001'],
      [(output) => output.bytes(Uint8Array.of(1, 2, 3, 4, 5)), '0102030405'],
      [(output) => output.countedString('disk'), '000000046469736b'],
      [(output) => output.zeroes(9), '000000000000000000'],
    ];
    for (const [write, expected] of writers) {
      const taken = write(new HandshakeOutput().bytes(new Uint8Array(before).fill(0xee))).take();
      assert.equal(Buffer.from(taken.subarray(before)).toString('hex'), expected, `after ${before} bytes`);
      assert.ok(taken.subarray(0, before).every((byte) => byte === 0xee));
    }
  }
});

test('random option sequences: no exception, no endless answer, every byte used or kept for later', () => {
  for (let seed = 1; seed <= 3000; seed++) {
    const random = generator(seed);
    const input = new HandshakeOutput().uint32(3);
    for (let count = random(60); count > 0; count--) {
      const option = OPTIONS[random(OPTIONS.length)]!;
      const data = new HandshakeOutput();
      if (random(3) > 0) data.countedString(random(4) > 0 ? 'disk' : 'none');
      if (random(3) > 0) data.uint16(random(3));
      if (random(3) > 0) data.uint32(random(3));
      if (random(4) === 0) data.countedString('base:allocation');
      if (random(6) === 0) data.bytes(randomBytes(random, random(300)));
      writeOption(input, option, data.take());
    }
    const bytes = input.take();
    const server = new ServerHandshake({
      listExports: () => ['disk', 'other'],
      extendedHeaders: seed % 2 === 0,
    });
    assert.doesNotThrow(() => {
      let at = 0;
      let outputBytes = 0;
      for (let end = 0; end < bytes.length; ) {
        end = Math.min(bytes.length, end + 1 + random(200));
        for (;;) {
          const used = server.consume(bytes.subarray(at, end));
          at += used;
          const wanted = server.exportWanted;
          if (wanted === 'disk') server.answerExport(DISK);
          else if (wanted !== null) server.answerExport({ reply: nbd.NBD_REP_ERR_UNKNOWN, message: 'none' });
          else if (used === 0) break;
        }
        outputBytes += server.takeOutput().length;
      }
      assert.ok(outputBytes < 64 * 1024, `${outputBytes} bytes of output`);
      const waits = bytes.length - at;
      assert.ok(
        server.state !== 'options' || waits < 16 + 1024,
        `${waits} bytes are neither used nor wanted`,
      );
    }, `seed ${seed}`);
  }
});

test('a lying server: the client ends in ready or failed, or waits for more, and never throws', () => {
  const ends = new Map<string, number>();
  for (let seed = 1; seed <= 4000; seed++) {
    const random = generator(seed);
    const structured = random(2) === 0;
    const client = new ClientHandshake({ exportName: 'disk', structuredReplies: structured });
    const output = new HandshakeOutput();
    output.uint32(nbd.NBD_INIT_MAGIC_HI).uint32(nbd.NBD_INIT_MAGIC_LO);
    output
      .uint32(nbd.NBD_OPTS_MAGIC_HI)
      .uint32(nbd.NBD_OPTS_MAGIC_LO)
      .uint16(random(8) === 0 ? random(65536) : 3);
    if (structured)
      writeOptionReply(
        output,
        nbd.NBD_OPT_STRUCTURED_REPLY,
        random(5) === 0 ? 0x80000001 : 1,
        new Uint8Array(0),
      );
    for (let count = 1 + random(5); count > 0; count--) {
      const type = random(5);
      const info = new HandshakeOutput().uint16(type);
      // The wrong fields for the type now and then.
      if ((type === nbd.NBD_INFO_EXPORT) !== (random(8) === 0))
        info.uint64(random(2 ** 30)).uint16(random(65536));
      else
        info
          .uint32(1 + random(9))
          .uint32(random(2 ** 31))
          .uint32(random(2 ** 31));
      if (random(8) === 0) info.bytes(randomBytes(random, random(40)));
      writeOptionReply(output, nbd.NBD_OPT_GO, nbd.NBD_REP_INFO, info.take());
    }
    const last =
      [nbd.NBD_REP_ACK, nbd.NBD_REP_ERR_UNKNOWN, nbd.NBD_REP_ERR_UNSUP, 77][random(8)] ?? nbd.NBD_REP_ACK;
    writeOptionReply(output, nbd.NBD_OPT_GO, last, new TextEncoder().encode('no'));
    if (last === nbd.NBD_REP_ERR_UNSUP)
      output
        .uint64(2 ** 20)
        .uint16(1)
        .zeroes(124);
    const bytes = output.take();
    for (let count = random(3); count > 0; count--) bytes[random(bytes.length)] = random(256);
    assert.doesNotThrow(() => {
      let at = 0;
      for (let end = 0; end < bytes.length; ) {
        end = Math.min(bytes.length, end + 1 + random(64));
        at += client.consume(bytes.subarray(at, end));
        client.takeOutput();
      }
    }, `seed ${seed}`);
    assert.equal(client.result !== null, client.state === 'ready', `seed ${seed}`);
    assert.equal(client.failure !== null, client.state === 'failed', `seed ${seed}`);
    ends.set(client.state, (ends.get(client.state) ?? 0) + 1);
  }
  assert.ok((ends.get('ready') ?? 0) > 400 && (ends.get('failed') ?? 0) > 400, JSON.stringify([...ends]));
});

test('headers of random bytes decode to numbers in range; what is encoded decodes to the same', () => {
  for (let seed = 1; seed <= 5000; seed++) {
    const random = generator(seed);
    const bytes = randomBytes(random, 64);
    const view = new DataView(bytes.buffer);
    const at = random(16);
    const inRange = [
      request.requestOffset(view, at),
      request.extendedRequestLength(view, at),
      reply.extendedChunkLength(view, at),
      reply.chunkDataOffset(view, at),
    ];
    for (const value of inRange) {
      assert.ok(value === request.FIELD_INVALID || Number.isSafeInteger(value), `seed ${seed}`);
      assert.ok(value >= request.FIELD_INVALID, `seed ${seed}`);
    }
    const offset = random(2 ** 21) * 2 ** 32 + random(2 ** 32);
    const length = random(2 ** 21) * 2 ** 32 + random(2 ** 32);
    const [flags, type, high, low] = [random(65536), random(65536), random(2 ** 32), random(2 ** 32)];
    request.encodeExtendedRequest(view, at, flags, type, high, low, offset, length);
    assert.deepEqual(
      [
        request.requestFlags(view, at),
        request.requestType(view, at),
        request.requestCookieHigh(view, at),
        request.requestCookieLow(view, at),
        request.requestOffset(view, at),
        request.extendedRequestLength(view, at),
      ],
      [flags, type, high, low, offset, length],
      `seed ${seed}`,
    );
  }
});

test('option data of random bytes is read to its end and never beyond', () => {
  for (let seed = 1; seed <= 5000; seed++) {
    const random = generator(seed);
    const reader = new OptionReader(randomBytes(random, random(48)).subarray(random(4)));
    for (let count = 0; count < 12; count++) {
      const before = reader.remaining;
      const value = [() => reader.uint16(), () => reader.uint32(), () => reader.countedString()][
        random(3)
      ]!();
      assert.ok(reader.remaining >= 0 && reader.remaining <= before, `seed ${seed}`);
      if (typeof value === 'string') assert.ok(value.length <= before, `seed ${seed}`);
    }
  }
});
