import assert from 'node:assert/strict';
import { test } from 'node:test';
import { median, pairedRatio, spread } from './stats.ts';

test('the median of odd and even counts, whatever the order', () => {
  assert.equal(median([9, 1, 5]), 5);
  assert.equal(median([10, 1, 2, 3]), 2.5);
  assert.ok(Number.isNaN(median([])));
});

test('the spread is relative to the median', () => {
  assert.equal(spread([90, 100, 120]), 0.3);
});

test('ratios are taken by round, so that a slow round does not shift them', () => {
  const ratio = pairedRatio([200, 20, 220], [100, 10, 100]);
  assert.deepEqual(ratio, { value: 2, resolved: true, rounds: 3 });
});

test('gaps under a fifth are unresolved', () => {
  assert.equal(pairedRatio([110, 112, 115], [100, 100, 100])?.resolved, false);
  assert.equal(pairedRatio([90, 88, 85], [100, 100, 100])?.resolved, false);
  assert.equal(pairedRatio([80, 80, 80], [100, 100, 100])?.resolved, true);
});

test('a gap whose rounds disagree on the direction is unresolved', () => {
  assert.equal(pairedRatio([150, 150, 90], [100, 100, 100])?.resolved, false);
});

test('rounds in which one side failed do not count', () => {
  assert.equal(pairedRatio([undefined, 300], [100, 100])?.rounds, 1);
  assert.equal(pairedRatio([undefined, 300], [100, undefined]), null);
});
