/** A thousand connections that do nothing, or read nothing, slow only themselves. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { BLOCK_BYTES, blockContent } from './block-content.ts';
import { NbdSession } from './nbd-session.ts';
import { StorageNode } from './storage-node.ts';

const MIB = 2 ** 20;
const CROWD = 1000;
const SIZE = 16 * MIB;
const POOL_MIB = 64;
/** Rounds of a client that writes and reads back. */
const ROUNDS = 300;
const BOUND_MS = 60_000;
const GROWTH_BYTES_MAX = 192 * MIB;

async function startNode(t: TestContext, extra: readonly string[]): Promise<StorageNode> {
  const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-crowd-'));
  const node = await StorageNode.start({
    dataDir: join(directory, 'data'),
    exports: [`vol-a=${SIZE}`],
    extra: ['--buffer-mib', String(POOL_MIB), ...extra],
  });
  t.after(async () => {
    await node.end('SIGKILL');
    rmSync(directory, { recursive: true, force: true });
  });
  return node;
}

/** Writes blocks and reads them back; fails when it takes absurdly long. */
async function work(session: NbdSession): Promise<void> {
  const rounds = async (): Promise<string> => {
    for (let round = 0; round < ROUNDS; round++) {
      const block = (round * 37) % (SIZE / BLOCK_BYTES);
      const data = blockContent(block, round);
      const { error } = await session.request(nbd.NBD_CMD_WRITE, block * BLOCK_BYTES, BLOCK_BYTES, { data });
      assert.equal(error, 0);
      const read = await session.request(nbd.NBD_CMD_READ, block * BLOCK_BYTES, BLOCK_BYTES);
      assert.ok(data.equals(read.data));
    }
    return 'done';
  };
  const timer = new AbortController();
  const late = sleep(BOUND_MS, 'starved', { signal: timer.signal }).catch(() => 'stopped');
  assert.equal(await Promise.race([rounds(), late]), 'done');
  timer.abort();
}

/** A new client's session; tries again until it is let in. */
async function openWithin(address: string, boundMs: number): Promise<NbdSession> {
  for (const until = Date.now() + boundMs; ; await sleep(200)) {
    const session = await NbdSession.open(address, { exportName: 'vol-a' }).catch(() => null);
    if (session !== null) return session;
    assert.ok(Date.now() < until, 'no new client is let in');
  }
}

function crowd(address: string, count: number): Socket[] {
  const at = address.lastIndexOf(':');
  return Array.from({ length: count }, () => {
    const socket = connect(Number(address.slice(at + 1)), address.slice(0, at));
    socket.on('error', () => {});
    socket.pause();
    return socket;
  });
}

test(`${CROWD} connections that say nothing`, async (t) => {
  const node = await startNode(t, []);
  const witness = await NbdSession.open(node.nbd, { exportName: 'vol-a' });
  const before = node.residentBytes();
  const silent = crowd(node.nbd, CROWD);
  t.after(() => {
    for (const socket of silent) socket.destroy();
  });
  await sleep(500);
  await work(witness);
  assert.ok(node.residentBytes() - before < GROWTH_BYTES_MAX);
  for (const socket of silent) socket.destroy();
  // As soon as they are gone, others get in.
  const fresh = await openWithin(node.nbd, BOUND_MS);
  await work(fresh);
  fresh.destroy();
  witness.destroy();
});

test(`${CROWD} connections that ask for a lot and read nothing`, async (t) => {
  const node = await startNode(t, ['--connections', String(CROWD + 100)]);
  const witness = await NbdSession.open(node.nbd, { exportName: 'vol-a' });
  const before = node.residentBytes();
  const deaf: NbdSession[] = [];
  t.after(() => {
    for (const session of deaf) session.destroy();
  });
  for (let index = 0; index < CROWD; index++) {
    // Refused for lack of memory is in order; being let in and starving the others is not.
    const session = await NbdSession.open(node.nbd, { exportName: 'vol-a' }).catch(() => null);
    if (session === null) continue;
    deaf.push(session);
    session.socket.pause();
    for (let i = 0; i < 64; i++) session.request(nbd.NBD_CMD_READ, 0, MIB).catch(() => {});
  }
  assert.ok(deaf.length > 16, `only ${deaf.length} of ${CROWD} were let in`);
  await work(witness);
  // Those who take nothing make room for a new client, too.
  const fresh = await openWithin(node.nbd, BOUND_MS);
  await work(fresh);
  assert.ok(node.residentBytes() - before < GROWTH_BYTES_MAX);
  fresh.destroy();
  witness.destroy();
});
