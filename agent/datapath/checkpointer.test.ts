import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Checkpointer } from './checkpointer.ts';

function setUp(queueCount = 1, generation = 0): { log: string[]; checkpointer: Checkpointer } {
  const log: string[] = [];
  const checkpointer = new Checkpointer({
    ...{ generation, epoch: 4 },
    host: {
      mark: (number, epoch) => log.push(`mark ${number} ${epoch}`),
      sendCheckpoint: (number, epoch) => log.push(`checkpoint ${number} ${epoch}`),
      queueCount: () => queueCount,
    },
  });
  return { log, checkpointer };
}

test('nothing is sent while nothing is written', () => {
  const { log, checkpointer } = setUp();
  checkpointer.tick();
  assert.deepEqual(log, []);
});

test('a checkpoint follows its mark once the fence has passed, and one mark is under way at a time', () => {
  const { log, checkpointer } = setUp();
  checkpointer.noteWrite();
  checkpointer.tick();
  checkpointer.noteWrite();
  checkpointer.tick();
  assert.deepEqual(log, ['mark 1 4']);
  checkpointer.fencePassed(0, 1);
  checkpointer.fencePassed(0, 1);
  checkpointer.tick();
  assert.deepEqual(log.slice(1), ['checkpoint 1 4', 'mark 2 4']);
});

test('a checkpoint waits for the fence of every queue', () => {
  const { log, checkpointer } = setUp(3);
  checkpointer.noteWrite();
  checkpointer.tick();
  checkpointer.fencePassed(1, 1);
  checkpointer.fencePassed(1, 1);
  checkpointer.fencePassed(0, 1);
  assert.deepEqual(log, ['mark 1 4']);
  checkpointer.fencePassed(2, 1);
  assert.deepEqual(log, ['mark 1 4', 'checkpoint 1 4']);
});

test('one more mark comes after the last write, for those that were at work when theirs arrived', () => {
  const { log, checkpointer } = setUp();
  checkpointer.noteWrite();
  for (let number = 1; number <= 4; number++) {
    checkpointer.tick();
    checkpointer.fencePassed(0, number);
  }
  assert.deepEqual(log, ['mark 1 4', 'checkpoint 1 4', 'mark 2 4', 'checkpoint 2 4']);
});

test('a new membership ends the mark under way, and marks anew', () => {
  const { log, checkpointer } = setUp(2);
  checkpointer.noteWrite();
  checkpointer.tick();
  checkpointer.fencePassed(0, 1);
  checkpointer.membership(5);
  checkpointer.fencePassed(1, 1);
  checkpointer.tick();
  assert.deepEqual(log, ['mark 1 4', 'mark 2 5']);
  // A fence of the mark before, told late.
  checkpointer.fencePassed(0, 1);
  checkpointer.fencePassed(1, 2);
  assert.equal(log.length, 2);
  checkpointer.fencePassed(0, 2);
  assert.equal(log[2], 'checkpoint 2 5');
});

test('the marks of a later writer have higher numbers', () => {
  const marks = [setUp(1, 2), setUp(1, 3), setUp(1, 2 ** 20)].map(({ log, checkpointer }) => {
    checkpointer.noteWrite();
    checkpointer.tick();
    return Number(log[0]!.split(' ')[1]);
  });
  assert.ok(marks[0]! < marks[1]! && marks[1]! < marks[2]!);
  assert.ok(marks.every(Number.isSafeInteger));
});
