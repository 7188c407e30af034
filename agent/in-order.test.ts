import assert from 'node:assert/strict';
import { test } from 'node:test';
import { InOrder } from './in-order.ts';

test('steps of one key follow each other, also after one that failed; those of another do not wait', async () => {
  const order = new InOrder();
  const said: string[] = [];
  const gate = Promise.withResolvers<void>();
  const first = order.run('a', async () => {
    await gate.promise;
    said.push('a1');
    throw new Error('a1 failed');
  });
  const second = order.run('a', async () => {
    said.push('a2');
    return 2;
  });
  await order.run('b', async () => {
    said.push('b1');
  });
  assert.deepEqual(said, ['b1']);
  gate.resolve();
  await assert.rejects(first, /a1 failed/);
  assert.equal(await second, 2);
  await order.ended();
  assert.deepEqual(said, ['b1', 'a1', 'a2']);
});
