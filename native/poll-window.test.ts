import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PollWindow } from './poll-window.ts';

function after(window: PollWindow, ...waitsUs: number[]): number {
  for (const waitedUs of waitsUs) window.note(waitedUs);
  return window.us;
}

test('it opens by doubling while waits are short, up to its limit', () => {
  const window = new PollWindow(100);
  assert.equal(window.us, 0);
  assert.equal(after(window, 90), 10);
  assert.equal(after(window, 90), 20);
  assert.equal(after(window, 90, 90), 80);
  assert.equal(after(window, 90), 100);
  assert.equal(after(window, 90, 1), 100, 'waits within it leave it');
});

test('it closes with a wait that is too long', () => {
  const window = new PollWindow(100);
  assert.equal(after(window, 50, 50, 50, 101), 0);
  assert.equal(after(window, 5000), 0);
});

test('it tells whether a wait ended within it', () => {
  const window = new PollWindow(100);
  assert.equal(window.note(9), false);
  assert.equal(window.note(10), true);
  assert.equal(window.note(11), false);
});

test('a limit of nothing keeps it shut', () => {
  assert.equal(after(new PollWindow(0), 0, 1, 50), 0);
});
