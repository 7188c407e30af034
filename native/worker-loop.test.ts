import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { RingWorker } from './worker-loop.ts';

const ECHO = new URL('./testing/echo-worker.ts', import.meta.url);

function startEcho(): { worker: RingWorker; next: () => Promise<unknown>; ended: Promise<Error | null> } {
  const queue: unknown[] = [];
  const waiting: ((message: unknown) => void)[] = [];
  const exit = Promise.withResolvers<Error | null>();
  const worker = new RingWorker({
    module: ECHO,
    name: 'echo',
    data: { greeting: 'hello' },
    onMessage: (message) => {
      const waiter = waiting.shift();
      if (waiter === undefined) queue.push(message);
      else waiter(message);
    },
    onExit: exit.resolve,
  });
  const next = (): Promise<unknown> =>
    queue.length > 0 ? Promise.resolve(queue.shift()) : new Promise((resolve) => waiting.push(resolve));
  return { worker, next, ended: exit.promise };
}

test('messages wake a blocked worker, in order, and its answers arrive', async () => {
  const { worker, next, ended } = startEcho();
  assert.equal(await next(), 'hello');
  for (let i = 0; i < 100; i++) worker.post(i);
  for (let i = 0; i < 100; i++) assert.equal(await next(), i);
  worker.post('stop');
  assert.equal(await ended, null);
});

test('a worker that is blocked in the kernel can be terminated', async () => {
  const { worker, next } = startEcho();
  assert.equal(await next(), 'hello');
  await worker.terminate();
  await worker.exited;
  worker.post('after the end, this does nothing');
});

test('an error in a worker reaches the main thread', async () => {
  const { worker, next, ended } = startEcho();
  assert.equal(await next(), 'hello');
  worker.post('throw');
  assert.match(String(await ended), /as asked/);
});

test('process.exit ends while a worker is blocked in the kernel', () => {
  const program = fileURLToPath(new URL('./testing/exit-while-blocked.ts', import.meta.url));
  const child = spawnSync(process.execPath, [program], { timeout: 20_000 });
  assert.equal(child.signal, null, 'the process hung');
  assert.equal(child.status, 7, child.stderr.toString());
});
