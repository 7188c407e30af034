/** Repairs on a simulated disk: what is written, when, and every way to end. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { CapabilitySigner, generateCapabilityKey } from '@blockwire/shared/capability.ts';
import { addSession } from '@blockwire/shared/export-name.ts';
import { Stat } from '../data/stats.ts';
import { Copying, REQUEST, SIZE } from '../testing/copying.ts';
import type { SimulatedSocket } from '../testing/simulated-io.ts';
import { FD, feed, INSTALLED, MIB, open, replies, request } from '../testing/worker-harness.ts';

const signer = new CapabilitySigner(generateCapabilityKey());

/** A replica in sync without intents, with some blocks rotten. */
function rotten(seed: number, blocks: readonly number[]): Copying {
  const copying = new Copying(seed, { installed: INSTALLED });
  clearIntents(copying);
  copying.source.fill(255);
  for (const block of blocks) copying.h.io.files.get(FD)!.fill(0xee, block * 4096, (block + 1) * 4096);
  return copying;
}

function clearIntents({ h }: Copying): void {
  h.server.onMessage({ type: 'checkpoint', request: 8, id: 'vol' });
  h.settle();
}

function openWriter({ h }: Copying): SimulatedSocket {
  h.server.onMessage({ type: 'trust', request: 4, key: signer.publicKey });
  const expiresAt = Date.now() / 1000 + 3600;
  const cap = signer.sign({
    ...{ volumeId: 'vol', generation: INSTALLED.generation, mode: 'writer', expiresAt: Math.ceil(expiresAt) },
  });
  return open(h, addSession(`vol?cap=${cap}`, { epoch: INSTALLED.epoch, link: null, attempt: null }));
}

function write(socket: SimulatedSocket, cookie: number, offset: number, fill: number): void {
  feed(socket, request(nbd.NBD_CMD_WRITE, cookie, offset, 4096), Buffer.alloc(4096, fill));
}

function pulls({ h }: Copying): number {
  return h.posted.filter(({ type }) => type === 'pull').length;
}

test('only what does not match its checksum is written', () => {
  const copying = rotten(1, [2, 300, SIZE / 4096 - 1].map(Math.floor));
  // Whatever the source holds elsewhere, it does not come here.
  copying.source.fill(7, 100 * 4096, 200 * 4096);
  copying.start('repair');
  copying.run();
  assert.equal(copying.outcome, null);
  assert.ok(copying.content.every((byte) => byte === 255));
  const socket = open(copying.h);
  feed(socket, request(nbd.NBD_CMD_READ, 1, 0, MIB));
  copying.run();
  assert.equal(replies(socket, new Map([[1, MIB]])).get(1)!.error, nbd.NBD_OK);
});

test('a region with an intent is not touched before a checkpoint has covered it', () => {
  const copying = rotten(2, [2]);
  const socket = openWriter(copying);
  write(socket, 1, 40_960, 9);
  copying.run();
  copying.start('repair');
  copying.run();
  assert.equal(copying.outcome, undefined);
  assert.equal(pulls(copying), 9, 'chunks of the other regions');
  assert.equal(copying.content[8192], 0xee);
  copying.source.fill(9, 40_960, 45_056);
  clearIntents(copying);
  copying.h.server.onTick(600);
  copying.run();
  assert.equal(copying.outcome, null);
  assert.ok(copying.content.equals(copying.source));
});

test('one that is given up does not hold back the checkpoint that makes its region calm', () => {
  const copying = rotten(7, [2]);
  const { h } = copying;
  const socket = openWriter(copying);
  write(socket, 1, 40_960, 9);
  copying.run();
  feed(socket, request(nbd.NBD_CMD_BLOCKWIRE_MARK, 2, 1, INSTALLED.epoch));
  copying.run();
  copying.start('repair');
  // Somebody reads the rotten block meanwhile, with its range to itself the second time.
  feed(socket, request(nbd.NBD_CMD_READ, 3, 8192, 4096));
  copying.run();
  feed(socket, request(nbd.NBD_CMD_BLOCKWIRE_CHECKPOINT, 4, 1, INSTALLED.epoch));
  copying.run();
  copying.source.fill(9, 40_960, 45_056);
  h.server.onTick(600);
  copying.run();
  assert.equal(copying.outcome, null);
  assert.ok(copying.content.equals(copying.source));
});

test('intents count however long no writer has been there: it may come back, and send what it lacks to the peer alone', () => {
  const copying = rotten(6, [2]);
  const { h } = copying;
  const writer = openWriter(copying);
  write(writer, 1, 8192, 9);
  copying.run();
  writer.clientClosed = true;
  h.server.onTick(100_000);
  copying.run();
  h.io.files.get(FD)!.fill(0xee, 8192, 12_288);
  // Nothing ends with time.
  h.server.onTick(400_000);
  copying.start('repair');
  h.server.onTick(459_000);
  copying.run();
  assert.equal(copying.outcome, undefined);
  h.server.onTick(461_000);
  copying.run();
  assert.match(copying.outcome ?? '', /regions 0 are not calm/);
  assert.ok(copying.content.subarray(8192, 12_288).every((byte) => byte === 0xee));
});

test('one that never becomes calm is given up; neither does one of another epoch', () => {
  const busy = rotten(3, [2]);
  const socket = openWriter(busy);
  write(socket, 1, 40_960, 9);
  busy.run();
  busy.start('repair');
  for (let nowMs = 0; nowMs < 70_000; nowMs += 1000) {
    busy.h.server.onTick(nowMs);
    busy.run();
  }
  assert.match(busy.outcome ?? '', /regions 0 are not calm/);
  const later = rotten(4, [2]);
  const installed = { ...INSTALLED, epoch: 5 };
  later.h.server.onMessage({ type: 'install', request: 9, id: 'vol', installed, cut: 'none' });
  later.h.settle();
  later.start('repair');
  later.run();
  assert.equal(pulls(later), 0);
  assert.match(later.outcome ?? '', /to be tried again/, 'at once: only another order can do it');
});

test('a write of the region waits until the repair gives it back', () => {
  const copying = rotten(5, [2]);
  const socket = open(copying.h);
  copying.start('repair');
  copying.h.settle();
  assert.equal(pulls(copying), 4);
  write(socket, 1, 8192, 9);
  copying.h.settle();
  assert.equal(copying.content[8192], 0xee, "the region is the repair's own");
  copying.run();
  assert.equal(copying.outcome, null);
  assert.ok(copying.content.subarray(8192, 12_288).every((byte) => byte === 9));
  assert.equal(replies(socket, new Map()).get(1)!.error, nbd.NBD_OK);
});

test('whatever ends it, it is answered once, gives everything back, and writes go on', () => {
  for (let seed = 0; seed < 24; seed++) {
    const copying = rotten(seed, [2, 3, 300, 301]);
    const { h } = copying;
    const freeBytes = h.stats[Stat.poolFreeBytes];
    const socket = open(h);
    if (seed % 2 === 0) write(socket, 1, 40_960, 9);
    copying.start('repair');
    for (let i = h.random() % 60; i > 0; i--) copying.step();
    switch (seed % 4) {
      case 0:
        h.server.onMessage({ type: 'endCopy', request: REQUEST, id: 'vol', reason: 'a reason' });
        break;
      case 1: {
        const installed = { ...INSTALLED, generation: 2, epoch: 3 };
        h.server.onMessage({ type: 'install', request: 9, id: 'vol', installed, cut: 'none' });
        break;
      }
      case 2:
        h.io.fault = (operation, fd) => (operation === 'write' && fd === FD ? 5 : 0);
        break;
      default:
        while (copying.pulls.length === 0 && copying.outcome === undefined) if (!copying.step()) break;
        for (const pull of copying.pulls.splice(0)) copying.answer(pull, 'the source went away');
    }
    for (let nowMs = 0; nowMs < 70_000; nowMs += 1000) {
      h.server.onTick(nowMs);
      copying.run();
    }
    h.io.fault = () => 0;
    assert.equal(h.posted.filter(({ type }) => type === 'copied').length, 1, `seed ${seed}`);
    write(socket, 2, 8192, 5);
    write(socket, 3, MIB, 6);
    copying.run();
    const found = replies(socket, new Map());
    assert.deepEqual([found.get(2)?.error, found.get(3)?.error], [0, 0], `seed ${seed}`);
    h.server.onBatchEnd();
    assert.equal(h.stats[Stat.poolFreeBytes], freeBytes, `seed ${seed}`);
  }
});
