import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoWatch } from './io-watch.ts';

function watch(timeoutMs: number) {
  const changes: string[] = [];
  const timers = new Map<() => void, number>();
  const io = new IoWatch({
    timeoutMs,
    after: (milliseconds, step) => {
      timers.set(step, milliseconds);
      return () => timers.delete(step);
    },
    onChange: (state, before) => changes.push(`${before} > ${state}`),
  });
  return { io, changes, timers };
}

test('without a timeout I/O waits for as long as it takes', () => {
  const { io, changes, timers } = watch(0);
  io.served(false);
  io.served(false);
  assert.equal(timers.size, 0);
  io.served(true);
  assert.deepEqual(changes, ['ok > waiting', 'waiting > ok']);
});

test('I/O fails after the timeout, and is well again with the first replica', () => {
  const { io, changes, timers } = watch(3000);
  io.served(true);
  io.served(false);
  io.served(false);
  const [[expire, milliseconds]] = [...timers] as [[() => void, number]];
  assert.deepEqual([timers.size, milliseconds], [1, 3000]);
  expire();
  io.served(false);
  assert.equal(io.state, 'failing');
  io.served(true);
  assert.deepEqual(changes, ['ok > waiting', 'waiting > failing', 'failing > ok']);
});

test('a replica that answers in time calls the timeout off', () => {
  const { io, timers } = watch(3000);
  io.served(false);
  io.served(true);
  assert.deepEqual([io.state, timers.size], ['ok', 0]);
});

test('I/O that was given up fails for good, whoever answers', () => {
  const { io, changes, timers } = watch(3000);
  io.served(false);
  io.giveUp();
  io.served(true);
  assert.deepEqual([io.state, timers.size], ['failing', 0]);
  assert.deepEqual(changes, ['ok > waiting']);
});
