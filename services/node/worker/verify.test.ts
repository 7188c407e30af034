/** Reads against their checksums: beside writes in flight, after rot, after writes that failed half way. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import { FD, feed, harness, MIB, open, replies, request } from '../testing/worker-harness.ts';

const EIO = 5;

test('a read beside writes in flight is no error', () => {
  let retries = 0;
  for (let seed = 1; seed <= 20; seed++) {
    const h = harness(seed);
    // A read in pieces, with writes between them.
    h.io.transferMax = 8192;
    const socket = open(h);
    const reader = open(h);
    const lengths = new Map<number, number>();
    for (let cookie = 1; cookie <= 40; cookie++) {
      feed(socket, request(nbd.NBD_CMD_WRITE, cookie, 8192, 16_384), Buffer.alloc(16_384, cookie));
      feed(reader, request(nbd.NBD_CMD_READ, cookie, 4096 * (cookie % 4), 32_768));
      lengths.set(cookie, 32_768);
    }
    h.settle();
    const answered = replies(reader, lengths);
    assert.equal(answered.size, 40);
    for (const { error } of answered.values()) assert.equal(error, 0, `seed ${seed}`);
    assert.equal(h.stats[Stat.checksumErrors], 0);
    retries += h.stats[Stat.checksumRetries]!;
  }
  assert.ok(retries > 0, 'the case was there');
});

test('rot is an error of the reads and merges that meet it, told once, until the block is written anew', () => {
  const h = harness(2);
  const socket = open(h);
  feed(socket, request(nbd.NBD_CMD_WRITE, 1, 0, 16_384), Buffer.alloc(16_384, 7));
  h.settle();
  h.io.files.get(FD)![4096 + 5] = 8;
  feed(socket, request(nbd.NBD_CMD_READ, 2, 0, 16_384));
  feed(socket, request(nbd.NBD_CMD_READ, 3, 8192, 4096));
  feed(socket, request(nbd.NBD_CMD_WRITE, 4, 4000, 200), Buffer.alloc(200));
  feed(socket, request(nbd.NBD_CMD_WRITE_ZEROES, 5, 5000, 100));
  h.settle();
  feed(socket, request(nbd.NBD_CMD_WRITE, 6, 4096, 4096), Buffer.alloc(4096, 9));
  h.settle();
  feed(socket, request(nbd.NBD_CMD_READ, 7, 0, 16_384));
  h.settle();
  const answered = replies(
    socket,
    new Map([
      [2, 16_384],
      [3, 4096],
      [7, 16_384],
    ]),
  );
  assert.deepEqual(
    [2, 3, 4, 5, 6, 7].map((cookie) => answered.get(cookie)?.error),
    [nbd.NBD_EIO, 0, nbd.NBD_EIO, nbd.NBD_EIO, 0, 0],
  );
  const told = h.posted.filter((message) => message.type === 'volumeFailed');
  assert.equal(told.length, 1);
  assert.equal(h.stats[Stat.checksumErrors], 3);
});

test('whatever a failed write left is no rot', () => {
  const h = harness(3, { sizeBytes: 4 * MIB });
  const socket = open(h);
  feed(socket, request(nbd.NBD_CMD_WRITE, 1, 0, 16_384), Buffer.alloc(16_384, 7));
  h.settle();
  h.io.fault = (operation, fd) => (fd === FD && operation === 'write' ? EIO : 0);
  feed(socket, request(nbd.NBD_CMD_WRITE, 2, 0, 16_384), Buffer.alloc(16_384, 8));
  h.settle();
  h.io.fault = () => 0;
  h.io.files.get(FD)!.fill(8, 0, 4096);
  feed(socket, request(nbd.NBD_CMD_READ, 3, 0, 16_384));
  h.settle();
  const answered = replies(socket, new Map([[3, 16_384]]));
  assert.deepEqual([answered.get(2)?.error, answered.get(3)?.error], [nbd.NBD_EIO, 0]);
});
