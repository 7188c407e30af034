import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { quietLog } from './testing/quiet-log.ts';
import { WriteHold } from './write-hold.ts';

function bench(queueCount: number) {
  const sent: string[] = [];
  let number = 0;
  const hold = new WriteHold({
    queues: {
      count: () => queueCount,
      post: (message) => {
        sent.push(message.type);
        if (message.type === 'hold') number = message.number;
      },
    },
    log: quietLog(),
  });
  const held = (queueId: number): void => hold.queueHeld(queueId, number);
  return { hold, held, sent };
}

test('writes are held when every queue has none in flight, until they are released', async () => {
  const { hold, held, sent } = bench(2);
  let isHeld = false;
  const outcome = hold.hold(1000).then(() => {
    isHeld = true;
  });
  held(0);
  held(0);
  await sleep(1);
  assert.equal(isHeld, false);
  held(1);
  await outcome;
  assert.equal(hold.isHolding, true);
  await hold.hold(1000);
  hold.release();
  hold.release();
  assert.deepEqual(sent, ['hold', 'unhold']);
});

test('a hold ends by itself, before or after it is complete, and whoever releases it learns that', async () => {
  const { hold, held, sent } = bench(1);
  await assert.rejects(hold.hold(5), { code: 'BW_TIMEOUT' });
  assert.throws(() => hold.release(), { code: 'BW_TIMEOUT' });
  const again = hold.hold(20);
  held(0);
  await again;
  await sleep(40);
  assert.equal(hold.isHolding, false);
  assert.throws(() => hold.release(), { code: 'BW_TIMEOUT' });
  assert.deepEqual(sent, ['hold', 'unhold', 'hold', 'unhold']);
});

test('a new process knows of no hold', () => {
  assert.throws(() => bench(1).hold.release(), { code: 'BW_TIMEOUT' });
});

test('the answer to an earlier hold does not count', async () => {
  const { hold, held } = bench(1);
  const first = hold.hold(1000);
  held(0);
  await first;
  hold.release();
  const second = hold.hold(30);
  hold.queueHeld(0, 1);
  await assert.rejects(second, { code: 'BW_TIMEOUT' });
});
