import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lifecycle } from './lifecycle.ts';
import { createLogger } from './log.ts';

function silent(): Lifecycle {
  const log = createLogger('test');
  log.level = 'silent';
  return new Lifecycle(log);
}

test('parts stop once, in reverse order of their start', async () => {
  const lifecycle = silent();
  const order: string[] = [];
  for (const name of ['store', 'server', 'session'])
    lifecycle.onStop(name, async () => void order.push(name));
  const [first, second] = await Promise.all([lifecycle.stop(), lifecycle.stop()]);
  assert.deepEqual(order, ['session', 'server', 'store']);
  assert.equal(first, 0);
  assert.equal(second, 0);
});

test('a part that fails to stop keeps no other from stopping, and shows in the exit code', async () => {
  const lifecycle = silent();
  let stopped = false;
  lifecycle.onStop('store', () => {
    stopped = true;
  });
  lifecycle.onStop('server', () => {
    throw new Error('no');
  });
  assert.equal(await lifecycle.stop(), 1);
  assert.equal(stopped, true);
});
