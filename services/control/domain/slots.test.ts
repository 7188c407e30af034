import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Pauses } from './pauses.ts';
import { Slots } from './slots.ts';

test('a node takes part in so many jobs and no more, until one is over', () => {
  const slots = new Slots(2);
  assert.ok(slots.take('a', ['n1', 'n2']));
  assert.ok(slots.take('b', ['n1', 'n3']));
  assert.equal(slots.take('c', ['n4', 'n1']), false);
  assert.ok(slots.take('a', ['n1', 'n2']), 'taken already');
  assert.deepEqual([slots.countOf('n1'), slots.countOf('n4')], [2, 0]);
  slots.release((job) => job === 'a');
  assert.ok(slots.take('c', ['n4', 'n1']));
  slots.occupy('d', ['n1']);
  assert.equal(slots.countOf('n1'), 3);
});

test('pauses grow up to a bound, and are over when it works', () => {
  let now = 1000;
  const pauses = new Pauses({ minMs: 10, maxMs: 30, now: () => now });
  for (const lengthMs of [10, 20, 30, 30]) {
    assert.ok(pauses.isOver('a'));
    pauses.begin('a');
    now += lengthMs - 1;
    assert.equal(pauses.isOver('a'), false);
    assert.ok(pauses.isOver('b'));
    now += 1;
  }
  pauses.begin('a');
  pauses.forget('a');
  assert.ok(pauses.isOver('a'));
  pauses.begin('a');
  now += 9;
  assert.equal(pauses.isOver('a'), false);
  pauses.forgetAll();
  assert.ok(pauses.isOver('a'));
});
