/** Clients that never come to the point: their handshake ends after its time, and others notice nothing. Half a minute. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { bytesOf, loadCorpus } from './corpus.ts';
import { connectRaw, FuzzTarget } from './fuzz.ts';

/** The node allows a handshake 30 s. */
const BOUND_MS = 45_000;
const LIST = Buffer.concat([Buffer.from('IHAVEOPT'), Buffer.from('0000000300000000', 'hex')]);

test('a handshake by drops ends; one in the middle of a request waits and harms nobody', async (t) => {
  const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-slow-'));
  const target = await FuzzTarget.start(join(directory, 'data'));
  t.after(async () => {
    await target.end();
    rmSync(directory, { recursive: true, force: true });
  });
  const haggling = bytesOf(
    loadCorpus()
      .find(({ name }) => name === 'haggling')!
      .frames.slice(0, -1),
  );
  const flags = Buffer.from('00000003', 'hex');
  /** What is sent in each second. */
  const slow: [string, (second: number) => Uint8Array][] = [
    ['silent', () => new Uint8Array(0)],
    ['a byte a second', (second) => haggling.subarray(second, second + 1)],
    ['an option a second', (second) => (second === 0 ? flags : LIST)],
  ];
  const ends = slow.map(async ([name, piece]) => {
    const socket = connectRaw(target.node.nbd);
    let closed = false;
    socket.once('close', () => {
      closed = true;
    });
    socket.resume();
    for (let second = 0; second * 1000 < BOUND_MS && !closed; second++) {
      if (socket.writable) socket.write(piece(second));
      await sleep(1000);
    }
    assert.ok(closed, `${name}: still open after ${BOUND_MS} ms`);
  });
  const go = loadCorpus().find(({ name }) => name === 'go')!;
  const half = connectRaw(target.node.nbd);
  half.resume();
  const upToHalfAWrite = bytesOf(go.frames.slice(0, 3)).subarray(0, -1000);
  half.write(upToHalfAWrite);
  await Promise.all(ends);
  assert.equal(half.readyState, 'open', 'NBD knows no time limit between requests');
  half.destroy();
  await target.check();
});
