/** Copies into a volume on a simulated disk: beside a writer, with little memory, with faults, ended in the middle. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { COPY_CHUNKS } from '../data/messages.ts';
import { Stat } from '../data/stats.ts';
import { Copying, REBUILDING, REQUEST, SIZE } from '../testing/copying.ts';
import type { SimulatedSocket } from '../testing/simulated-io.ts';
import { FD, feed, INSTALLED, MIB, open, replies, request } from '../testing/worker-harness.ts';

/** Why a copy ends, in the cases of a test below. */
const REASONS = [
  /^a reason$/,
  /membership has changed/,
  /writing failed/,
  /is being removed/,
  /source went away/,
];

/** A write of the volume's one writer: it comes to the replica, and to the source, in any order. */
function write(copying: Copying, socket: SimulatedSocket, cookie: number): () => void {
  const { h, source } = copying;
  const sectors = 1 + (h.random() % 40);
  const offset = (h.random() % (SIZE / 512 - sectors)) * 512;
  const zeroes = h.random() % 4 === 0;
  const data = Buffer.alloc(sectors * 512, zeroes ? 0 : 201 + (h.random() % 50));
  if (zeroes) feed(socket, request(nbd.NBD_CMD_WRITE_ZEROES, cookie, offset, data.length));
  else feed(socket, request(nbd.NBD_CMD_WRITE, cookie, offset, data.length), data);
  return () => void data.copy(source, offset);
}

test('a rebuild beside a writer ends with equal replicas', () => {
  for (let seed = 0; seed < 20; seed++) {
    const copying = new Copying(seed, { poolBytes: (1 + (seed % 2) * 7) * MIB });
    const { h } = copying;
    h.io.transferMax = seed % 3 === 0 ? 8192 : Number.POSITIVE_INFINITY;
    const socket = open(h);
    copying.start('rebuild');
    for (let cookie = 1; cookie <= 60 && copying.outcome === undefined; cookie++) {
      const isSourceFirst = h.random() % 2 === 0;
      const toSource = write(copying, socket, cookie);
      if (isSourceFirst) toSource();
      for (let i = h.random() % 60; i > 0; i--) copying.step();
      if (!isSourceFirst) toSource();
      // The writer has one request at a time.
      while (!replies(socket, new Map()).has(cookie)) assert.ok(copying.step(), 'the write is answered');
    }
    copying.run();
    assert.equal(copying.outcome, null, `seed ${seed}`);
    assert.ok(copying.content.equals(copying.source), `seed ${seed}`);
    for (const { error } of replies(socket, new Map()).values()) assert.equal(error, nbd.NBD_OK);
    // What is read back matches its checksums.
    for (let at = 0; at + 131_072 <= SIZE; at += 131_072) {
      feed(socket, request(nbd.NBD_CMD_READ, 1000 + at, at, 131_072));
      copying.run();
      const found = replies(socket, new Map([[1000 + at, 131_072]])).get(1000 + at)!;
      assert.equal(found.error, nbd.NBD_OK, `seed ${seed}`);
      socket.outbound = Buffer.alloc(0);
    }
  }
});

test('reconciling overwrites what is here, also the end of the volume', () => {
  const copying = new Copying(1, { installed: INSTALLED });
  const socket = open(copying.h);
  feed(socket, request(nbd.NBD_CMD_WRITE, 1, SIZE - 700, 700), Buffer.alloc(700, 9));
  copying.run();
  copying.start('reconcile');
  copying.run();
  assert.equal(copying.outcome, null);
  assert.ok(copying.content.equals(copying.source));
});

test('whatever ends it, it is answered once, and gives everything back', () => {
  for (let seed = 0; seed < 20; seed++) {
    const copying = new Copying(seed);
    const { h } = copying;
    h.settle();
    const freeBytes = h.stats[Stat.poolFreeBytes];
    copying.start('rebuild');
    for (let i = h.random() % 100; i > 0; i--) copying.step();
    const isOver = copying.outcome !== undefined;
    switch (seed % 5) {
      case 0:
        h.server.onMessage({ type: 'endCopy', request: REQUEST, id: 'vol', reason: 'a reason' });
        break;
      case 1: {
        const installed = { ...REBUILDING, generation: 2, epoch: 3 };
        h.server.onMessage({ type: 'install', request: 9, id: 'vol', installed, cut: 'olderGenerations' });
        break;
      }
      case 2:
        h.io.fault = (operation) => (operation === 'write' || operation === 'fallocate' ? 5 : 0);
        break;
      case 3:
        h.server.onMessage({ type: 'retire', request: 9, id: 'vol' });
        break;
      default:
        while (copying.pulls.length === 0 && copying.outcome === undefined) if (!copying.step()) break;
        for (const pull of copying.pulls.splice(0)) copying.answer(pull, 'the source went away');
    }
    copying.run();
    const ends = h.posted.filter((message) => message.type === 'copied');
    assert.equal(ends.length, 1, `seed ${seed}`);
    if (!isOver) assert.match(copying.outcome ?? '', REASONS[seed % 5]!, `seed ${seed}`);
    h.server.onBatchEnd();
    assert.equal(h.stats[Stat.poolFreeBytes], freeBytes, `seed ${seed}`);
    if (seed % 5 === 3)
      assert.ok(h.posted.some((message) => message.type === 'done' && message.request === 9));
  }
});

test('a rate is kept, and one chunk at a time is at work while there are requests', () => {
  const copying = new Copying(3);
  const { h } = copying;
  h.server.onTick(1000);
  copying.start('rebuild', MIB);
  copying.run();
  assert.equal(copying.outcome, undefined);
  let nowMs = 1000;
  while (copying.outcome === undefined && nowMs < 20_000) {
    nowMs += 100;
    h.server.onTick(nowMs);
    copying.run();
  }
  assert.equal(copying.outcome, null);
  assert.ok(nowMs > 3200 && nowMs < 4500, `3 MiB at 1 MiB/s took ${nowMs - 1000} ms`);

  const busy = new Copying(4);
  const socket = open(busy.h);
  busy.h.io.stuck.add(FD);
  feed(socket, request(nbd.NBD_CMD_READ, 1, 0, 4096));
  busy.h.settle();
  busy.start('rebuild');
  busy.h.settle();
  const pulled = (): number => busy.h.posted.filter(({ type }) => type === 'pull').length;
  assert.equal(pulled(), 1);
  busy.h.io.stuck.clear();
  busy.h.settle();
  busy.h.server.onTick(1);
  assert.equal(pulled(), COPY_CHUNKS);
});
