/** The whole worker on simulated sockets and files: order, memory, faults. Seeds of failing runs are in the message. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { encodeExtendedRequest } from '@blockwire/proto/nbd/request.ts';
import { Stat } from '../data/stats.ts';
import type { SimulatedSocket } from '../testing/simulated-io.ts';
import { FD, feed, type Harness, harness, MIB, open, replies, request } from '../testing/worker-harness.ts';

const ENOSPC = 28;
const EIO = 5;

describe('order and content', () => {
  test('any mix of overlapping writes, zeroes and trims ends as if done one by one', () => {
    for (let seed = 1; seed <= 150; seed++) {
      const sizeBytes = MIB - (seed % 3) * 777;
      const h = harness(seed, { sizeBytes, canZeroRange: seed % 2 === 0 });
      if (seed % 5 === 0) h.io.transferMax = 8192;
      const socket = open(h);
      const model = Buffer.alloc(sizeBytes);
      const count = 60;
      for (let cookie = 1; cookie <= count; cookie++) {
        const offset = h.random() % (sizeBytes - 1);
        const most = h.random() % 10 === 0 ? 300_000 : 9000;
        const length = 1 + (h.random() % Math.min(most, sizeBytes - offset));
        const fua = h.random() % 4 === 0 ? nbd.NBD_CMD_FLAG_FUA : 0;
        if (h.random() % 5 === 0) {
          const noHole = h.random() % 2 === 0 ? nbd.NBD_CMD_FLAG_NO_HOLE : 0;
          feed(socket, request(nbd.NBD_CMD_WRITE_ZEROES, cookie, offset, length, fua | noHole));
          model.fill(0, offset, offset + length);
        } else {
          const data = Buffer.alloc(length, cookie);
          feed(socket, request(nbd.NBD_CMD_WRITE, cookie, offset, length, fua), data);
          data.copy(model, offset);
        }
        if (h.random() % 8 === 0) h.io.step();
      }
      h.settle();
      const answered = replies(socket, new Map());
      assert.equal(answered.size, count, `seed ${seed}`);
      for (const { error } of answered.values()) assert.equal(error, 0, `seed ${seed}`);
      assert.ok(model.equals(h.io.files.get(FD)!.subarray(0, sizeBytes)), `seed ${seed}: content differs`);

      socket.outbound = Buffer.alloc(0);
      const lengths = new Map<number, number>();
      const expected = new Map<number, Buffer>();
      for (let cookie = 1; cookie <= 30; cookie++) {
        const offset = h.random() % (sizeBytes - 1);
        lengths.set(cookie, 1 + (h.random() % Math.min(50_000, sizeBytes - offset)));
        feed(socket, request(nbd.NBD_CMD_READ, cookie, offset, lengths.get(cookie)!));
        expected.set(cookie, model.subarray(offset, offset + lengths.get(cookie)!));
      }
      h.settle();
      const read = replies(socket, lengths);
      assert.equal(read.size, 30, `seed ${seed}`);
      for (const [cookie, { data }] of read) assert.ok(data.equals(expected.get(cookie)!), `seed ${seed}`);
    }
  });

  test('reads and writes longer than a block: several parts, right content, later requests wait their turn', () => {
    for (let seed = 1; seed <= 4; seed++) {
      const h = harness(seed, { sizeBytes: 8 * MIB });
      const socket = open(h);
      const data = Buffer.from(Uint8Array.from({ length: 5 * MIB }, (_, i) => (i * 31 + (i >> 12)) & 0xff));
      feed(socket, request(nbd.NBD_CMD_WRITE, 1, 1000, data.length), data);
      feed(socket, request(nbd.NBD_CMD_FLUSH, 2, 0, 0));
      h.settle();
      feed(socket, request(nbd.NBD_CMD_READ, 3, 1000, data.length));
      feed(socket, request(nbd.NBD_CMD_READ, 4, 2000, 10));
      h.settle();
      const lengths = new Map([
        [3, data.length],
        [4, 10],
      ]);
      const answered = replies(socket, lengths);
      assert.ok(answered.get(3)!.data.equals(data), `seed ${seed}`);
      assert.ok(answered.get(4)!.data.equals(data.subarray(1000, 1010)), `seed ${seed}`);
      assert.equal(answered.size, 4);
    }
  });
});

describe('reply modes', () => {
  const OPT = '49484156454f5054';
  const GO = `${OPT}00000007 00000009 00000003 766f6c 0000`;
  const COOKIE = '00000000000000';

  /** Sends options as hex and skips what the server answers to them. */
  function negotiate(h: Harness, options: string): SimulatedSocket {
    const socket = h.io.connect();
    feed(socket, Buffer.from(`00000003${options}${GO}`.replaceAll(' ', ''), 'hex'));
    h.settle();
    socket.outbound = Buffer.alloc(0);
    return socket;
  }

  function answers(socket: SimulatedSocket): string {
    const text = socket.outbound.toString('hex');
    socket.outbound = Buffer.alloc(0);
    return text;
  }

  function expectHex(actual: string, expected: string): void {
    assert.equal(actual, expected.replaceAll(' ', ''));
  }

  test('structured: every reply is a chunk, with its data, its error or its extent', () => {
    const h = harness(11);
    const query = `${OPT}0000000a 0000001e 00000003 766f6c 00000001 0000000f 626173653a616c6c6f636174696f6e`;
    const socket = negotiate(h, `${OPT}00000008 00000000 ${query}`);
    feed(socket, request(nbd.NBD_CMD_WRITE, 1, 100, 4), Buffer.from('wxyz'));
    h.settle();
    expectHex(answers(socket), `668e33ef 0001 0000 ${COOKIE}01 00000000`);
    feed(socket, request(nbd.NBD_CMD_READ, 2, 99, 6, nbd.NBD_CMD_FLAG_DF));
    h.settle();
    expectHex(answers(socket), `668e33ef 0001 0001 ${COOKIE}02 0000000e 0000000000000063 00 7778797a 00`);
    feed(socket, request(nbd.NBD_CMD_READ, 3, MIB, 1));
    h.settle();
    expectHex(answers(socket), `668e33ef 0001 8001 ${COOKIE}03 00000006 00000016 0000`);
    feed(socket, request(nbd.NBD_CMD_BLOCK_STATUS, 4, 0, 65536));
    h.settle();
    expectHex(
      answers(socket),
      `668e33ef 0001 0005 ${COOKIE}04 00000014 00000001 00001000 00000000 0000f000 00000003`,
    );
  });

  test('extended: 32-byte headers both ways, 64-bit lengths, payload only where it belongs', () => {
    const h = harness(12);
    const socket = negotiate(h, `${OPT}0000000b 00000000`);
    const extended = (
      flags: number,
      type: number,
      cookie: number,
      offset: number,
      length: number,
    ): Buffer => {
      const bytes = Buffer.alloc(32);
      encodeExtendedRequest(
        new DataView(bytes.buffer, bytes.byteOffset),
        0,
        flags,
        type,
        0,
        cookie,
        offset,
        length,
      );
      return bytes;
    };
    const PAYLOAD = nbd.NBD_CMD_FLAG_PAYLOAD_LEN;
    const header = (type: string, cookie: string, offset: string, length: string): string =>
      `6e8a278c 0001 ${type} ${COOKIE}${cookie} ${offset} ${length}`;
    feed(socket, extended(PAYLOAD, nbd.NBD_CMD_WRITE, 1, 100, 4), Buffer.from('wxyz'));
    h.settle();
    expectHex(answers(socket), header('0000', '01', '0000000000000064', '0000000000000000'));
    feed(socket, extended(0, nbd.NBD_CMD_READ, 2, 100, 4));
    h.settle();
    expectHex(
      answers(socket),
      `${header('0001', '02', '0000000000000064', '000000000000000c')} 0000000000000064 7778797a`,
    );
    // A payload that the command does not have is refused and skipped; the next request is read from the right place.
    feed(socket, extended(PAYLOAD, nbd.NBD_CMD_TRIM, 3, 0, 5), Buffer.from('extra'));
    feed(socket, extended(0, nbd.NBD_CMD_WRITE, 4, 0, 4096));
    feed(socket, extended(0, nbd.NBD_CMD_WRITE_ZEROES, 5, 0, 2 ** 40));
    feed(socket, extended(0, nbd.NBD_CMD_WRITE_ZEROES, 6, 0, MIB));
    h.settle();
    const all = answers(socket);
    for (const [cookie, error] of [
      ['03', '00000016'],
      ['04', '00000016'],
      ['05', '0000001c'],
    ] as const) {
      const refused = `${header('8001', cookie, '0000000000000000', '0000000000000006')} ${error} 0000`;
      assert.ok(all.includes(refused.replaceAll(' ', '')), cookie);
    }
    assert.ok(all.includes(header('0000', '06', '0000000000000000', '0000000000000000').replaceAll(' ', '')));
    feed(socket, extended(PAYLOAD, nbd.NBD_CMD_WRITE, 7, 0, 2 ** 40));
    h.settle();
    assert.equal(h.server.connectionCount, 0, 'more payload than was agreed on ends the connection');
  });
});

describe('faults', () => {
  test('ENOSPC and EIO reach the client, are told once, and later requests work', () => {
    const h = harness(1);
    const socket = open(h);
    h.io.fault = (operation, fd) =>
      fd !== FD ? 0 : operation === 'write' ? ENOSPC : operation === 'read' ? EIO : 0;
    feed(socket, request(nbd.NBD_CMD_WRITE, 1, 0, 4096), Buffer.alloc(4096));
    feed(socket, request(nbd.NBD_CMD_WRITE, 2, 4096, 4096), Buffer.alloc(4096));
    // A part of a block: its read fails before anything is written.
    feed(socket, request(nbd.NBD_CMD_WRITE, 3, 8192, 10), Buffer.alloc(10));
    feed(socket, request(nbd.NBD_CMD_READ, 4, 0, 512));
    h.settle();
    h.io.fault = () => 0;
    feed(socket, request(nbd.NBD_CMD_WRITE, 5, 0, 4096), Buffer.alloc(4096));
    h.settle();
    const answered = replies(socket, new Map([[4, 512]]));
    assert.deepEqual(
      [1, 2, 3, 4, 5].map((cookie) => answered.get(cookie)?.error),
      [nbd.NBD_ENOSPC, nbd.NBD_ENOSPC, nbd.NBD_EIO, nbd.NBD_EIO, 0],
    );
    const told = h.posted.filter((message) => message.type === 'volumeFailed');
    assert.ok(told.length >= 2 && told.length <= 4);
    assert.equal(h.stats[Stat.ioErrors], 4);
  });

  test('a write of several parts fails as a whole when one part fails', () => {
    const h = harness(3, { sizeBytes: 8 * MIB });
    const socket = open(h);
    let writes = 0;
    h.io.fault = (operation) => (operation === 'write' && ++writes === 2 ? ENOSPC : 0);
    feed(socket, request(nbd.NBD_CMD_WRITE, 1, 0, 4 * MIB), Buffer.alloc(4 * MIB));
    h.settle();
    assert.equal(replies(socket, new Map()).get(1)?.error, nbd.NBD_ENOSPC);
  });

  test('a connection that ends at any moment gives everything back', () => {
    for (let seed = 1; seed <= 100; seed++) {
      const h = harness(seed, { sizeBytes: 4 * MIB });
      const free = h.stats[Stat.poolFreeBytes];
      const socket = open(h);
      for (let cookie = 1; cookie <= 20; cookie++) {
        const length = h.random() % 6 === 0 ? 2 * MIB + 5 : 1 + (h.random() % 40_000);
        const offset = h.random() % (4 * MIB - length);
        const type = h.random() % 2;
        feed(socket, request(type, cookie, offset, length));
        if (type === nbd.NBD_CMD_WRITE) feed(socket, Buffer.alloc(length));
      }
      if (seed % 2 === 0) socket.inbound = socket.inbound.subarray(0, h.random() % socket.inbound.length);
      if (seed % 3 === 0) socket.stuck = true;
      for (let i = h.random() % 60; i > 0; i--) {
        if (h.random() % 2 === 0) h.server.onBatchEnd();
        h.io.step();
      }
      if (seed % 5 === 0) h.server.onMessage({ type: 'retire', request: 9, id: 'vol' });
      else socket.clientClosed = true;
      h.settle();
      assert.equal(h.server.connectionCount, 0, `seed ${seed}`);
      assert.equal(h.stats[Stat.poolFreeBytes], free, `seed ${seed}: memory is missing`);
      assert.equal(h.io.sockets.size, 0, `seed ${seed}`);
      if (seed % 5 === 0) {
        assert.ok(h.posted.some((message) => message.type === 'done' && message.request === 9));
      }
    }
  });

  test('clients that take no replies leave memory for those who do', () => {
    const h = harness(5, { sizeBytes: 4 * MIB, poolBytes: 8 * MIB });
    const stuck = [1, 2, 3, 4].map(() => open(h));
    for (const socket of stuck) {
      socket.stuck = true;
      for (let cookie = 1; cookie <= 100; cookie++) {
        feed(socket, request(nbd.NBD_CMD_READ, cookie, 0, 128 * 1024));
      }
    }
    h.settle();
    const socket = open(h);
    const lengths = new Map<number, number>();
    for (let cookie = 1; cookie <= 50; cookie++) {
      lengths.set(cookie, 65536);
      feed(socket, request(nbd.NBD_CMD_READ, cookie, cookie * 4096, 65536));
    }
    h.settle();
    assert.equal(replies(socket, lengths).size, 50);
    assert.equal(h.stats[Stat.connections], 5);
  });

  test('a handshake that never ends is ended', () => {
    const h = harness(6);
    h.server.onTick(1000);
    h.io.connect();
    h.settle();
    h.server.onTick(30_000);
    assert.equal(h.server.connectionCount, 1);
    h.server.onTick(31_001);
    h.settle();
    assert.equal(h.server.connectionCount, 0);
  });

  test('stop cuts every connection and tells when all are gone', () => {
    const h = harness(8);
    open(h);
    open(h);
    h.server.onMessage({ type: 'stop' });
    h.settle();
    assert.equal(h.server.connectionCount, 0);
    assert.deepEqual(h.posted.at(-1), { type: 'done', request: -1, errno: 0 });
  });
});
