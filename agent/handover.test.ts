import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type TestContext, test } from 'node:test';
import { createLogger } from '@blockwire/shared/log.ts';
import { askForHandover, lockAgent, type RunFiles, runFiles, serveHandover } from './handover.ts';

function setUp(t: TestContext): { files: RunFiles; log: ReturnType<typeof createLogger> } {
  const directory = mkdtempSync(join(tmpdir(), 'bw-run-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const log = createLogger('test');
  log.level = 'silent';
  return { files: runFiles(join(directory, 'run'), 'host-1'), log };
}

test('one process an agent: a second lock is refused, and says what to do', async (t) => {
  const { files } = setUp(t);
  await lockAgent(files, 'host-1', 0);
  await assert.rejects(lockAgent(files, 'host-1', 30), { code: 'BW_CONFLICT', message: /agent handover/ });
});

test('who asks gets the devices once they are released, and then the old process ends', async (t) => {
  const { files, log } = setUp(t);
  await lockAgent(files, 'host-1', 0);
  // Left by a process that was killed.
  writeFileSync(files.socket, '');
  const steps: string[] = [];
  const server = await serveHandover(files, {
    log,
    release: async () => {
      steps.push('released');
      return [{ attachmentId: 'att-000000000001', heldAtMs: 12.5 }];
    },
    end: () => steps.push('ended'),
  });
  t.after(() => server.close());
  assert.equal(statSync(files.socket).mode & 0o777, 0o600);
  const answer = await askForHandover(files, 1000);
  assert.deepEqual([...answer!], [['att-000000000001', 12.5]]);
  assert.deepEqual(steps, ['released', 'ended']);
});

test('a refusal is passed on, and the old process lives', async (t) => {
  const { files, log } = setUp(t);
  await lockAgent(files, 'host-1', 0);
  const server = await serveHandover(files, {
    log,
    release: () => Promise.reject(new Error('not now')),
    end: () => assert.fail('ended'),
  });
  t.after(() => server.close());
  await assert.rejects(askForHandover(files, 1000), { code: 'BW_CONFLICT', message: /not now/ });
});

test('nonsense on the socket releases nothing', async (t) => {
  const { files, log } = setUp(t);
  await lockAgent(files, 'host-1', 0);
  const release = () => assert.fail('released');
  const server = await serveHandover(files, { log, release, end: release });
  t.after(() => server.close());
  for (const nonsense of ['', '{', '{"op":"destroy"}', '[]']) {
    const socket = connect(files.socket);
    await once(socket, 'connect');
    socket.end(nonsense);
    assert.match(await text(socket), /BW_INVALID_ARGUMENT/);
  }
});

test('nobody there is no error: there is nothing to take over', async (t) => {
  const { files } = setUp(t);
  assert.equal(await askForHandover(files, 1000), null);
});
