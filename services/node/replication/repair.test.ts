import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Repair } from './repair.ts';

interface Bench {
  readonly log: string[];
  readonly repair: Repair;
  readonly restless: Set<number>;
}

function setUp(regions: readonly number[], isStarted = true): Bench {
  const log: string[] = [];
  const restless = new Set<number>();
  const note = (name: string) => (region: number) => void log.push(`${name} ${region}`);
  const repair = new Repair(regions, {
    ...{ acquire: note('acquire'), read: note('read'), write: note('write'), release: note('release') },
    isCalm: (region) => !restless.has(region),
    ended: (left) => log.push(`ended ${left.join(' ')}`),
  });
  if (isStarted) repair.start();
  return { log, repair, restless };
}

test('a region is read and written only while it is ours', () => {
  const { log, repair } = setUp([3, 7]);
  assert.deepEqual(log, ['acquire 3']);
  repair.granted();
  repair.readDone(null);
  assert.deepEqual(log.slice(1), ['read 3', 'write 3']);
  repair.written(null);
  assert.deepEqual(log.slice(3), ['release 3', 'acquire 7']);
  repair.granted();
  repair.readDone(null);
  repair.written(null);
  assert.equal(log.at(-1), 'ended ');
});

test('a region that is not calm, cannot be read or cannot be written is left, the others are repaired', () => {
  const { log, repair, restless } = setUp([1, 2, 3, 4]);
  restless.add(1);
  repair.granted();
  assert.deepEqual(log, ['acquire 1', 'release 1', 'acquire 2']);
  repair.granted();
  repair.readDone('the peer is away');
  repair.granted();
  repair.readDone(null);
  repair.written('the disk fails');
  repair.granted();
  repair.readDone(null);
  repair.written(null);
  assert.equal(log.at(-1), 'ended 1 2 3');
});

test('a repair that is cancelled gives its region back once, and not while it is written', () => {
  for (const state of ['waiting', 'reading', 'writing'] as const) {
    const { log, repair } = setUp([1, 2]);
    if (state !== 'waiting') repair.granted();
    if (state === 'writing') repair.readDone(null);
    repair.cancel();
    if (state === 'waiting') repair.granted();
    if (state === 'reading') repair.readDone(null);
    if (state === 'writing') {
      assert.ok(!log.includes('release 1'));
      repair.written(null);
    }
    assert.equal(log.filter((line) => line === 'release 1').length, 1, state);
    assert.equal(log.at(-1), state === 'writing' ? 'ended 2' : 'ended 1 2', state);
  }
});

test('a repair that is cancelled before it starts ends at once, and only then', () => {
  const { log, repair } = setUp([5], false);
  repair.cancel();
  repair.cancel();
  repair.start();
  assert.deepEqual(log, ['ended 5']);
});
