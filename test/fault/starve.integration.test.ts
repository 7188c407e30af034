/** Clients that hold memory and never give it back, in their several ways: others are served all the same. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import { NbdSession } from './nbd-session.ts';
import { StorageNode } from './storage-node.ts';

const MIB = 2 ** 20;
const REQUEST_BYTES = 64 * 1024;
/** A request among hostile clients is slow at worst. */
const BOUND_MS = 5000;

type Hostile = (session: NbdSession) => void;

function halfSent(session: NbdSession): void {
  const header = Buffer.alloc(29);
  encodeRequest(new DataView(header.buffer, header.byteOffset), 0, 0, nbd.NBD_CMD_WRITE, 0, 1, 0, MIB);
  session.socket.write(header);
}

function deaf(session: NbdSession): void {
  session.socket.pause();
  for (let i = 0; i < 64; i++) session.request(nbd.NBD_CMD_READ, 0, MIB).catch(() => {});
}

const CROWDS: readonly [name: string, count: number, Hostile, extra: readonly string[]][] = [
  ['writes of which one byte came', 100, halfSent, []],
  ['reads of which nothing is taken', 200, deaf, []],
  ['idle connections, more than memory has room for', 600, () => {}, ['--connections', '1000']],
];

for (const [name, count, hostile, extra] of CROWDS) {
  test(`${count} times: ${name}`, async (t) => {
    const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-starve-'));
    const dataDir = join(directory, 'data');
    const node = await StorageNode.start({ dataDir, exports: [`vol-a=${16 * MIB}`, `vol-b=${MIB}`], extra });
    const open: NbdSession[] = [];
    t.after(async () => {
      for (const session of open) session.destroy();
      await node.end('SIGKILL');
      rmSync(directory, { recursive: true, force: true });
    });
    const within = async <T>(what: string, work: Promise<T>): Promise<T> => {
      const late = sleep(BOUND_MS, 'late' as const, { ref: false });
      const outcome = await Promise.race([work, late]);
      assert.notEqual(outcome, 'late', `${what}: not within ${BOUND_MS} ms`);
      return outcome as T;
    };
    const witness = await NbdSession.open(node.nbd, { exportName: 'vol-b' });
    open.push(witness);
    for (let i = 0; i < count; i++) {
      const session = await NbdSession.open(node.nbd, { exportName: 'vol-a' }).catch(() => null);
      if (session === null) continue;
      open.push(session);
      hostile(session);
    }
    for (let i = 0; i < 20; i++) {
      const data = Buffer.alloc(REQUEST_BYTES, i + 1);
      const written = await within('a write', witness.request(nbd.NBD_CMD_WRITE, 0, data.length, { data }));
      assert.equal(written.error, 0);
      const read = await within('a read', witness.request(nbd.NBD_CMD_READ, 0, data.length));
      assert.ok(data.equals(read.data));
    }
    const fresh = await within('a new client', NbdSession.open(node.nbd, { exportName: 'vol-b' }));
    open.push(fresh);
    const { error } = await within('its read', fresh.request(nbd.NBD_CMD_READ, 0, REQUEST_BYTES));
    assert.equal(error, 0);
  });
}
