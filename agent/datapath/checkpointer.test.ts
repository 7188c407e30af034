import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Checkpointer } from './checkpointer.ts';

function setUp(): { log: string[]; checkpointer: Checkpointer } {
  const log: string[] = [];
  const checkpointer = new Checkpointer({
    epoch: 4,
    host: {
      sendMark: (number, epoch) => log.push(`mark ${number} ${epoch}`),
      sendCheckpoint: (number, epoch) => log.push(`checkpoint ${number} ${epoch}`),
      beginFence: () => log.push('fence'),
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
  assert.deepEqual(log, ['mark 1 4', 'fence']);
  checkpointer.fencePassed();
  checkpointer.fencePassed();
  checkpointer.tick();
  assert.deepEqual(log.slice(2), ['checkpoint 1 4', 'mark 2 4', 'fence']);
});

test('a new membership ends the mark under way, and marks anew', () => {
  const { log, checkpointer } = setUp();
  checkpointer.noteWrite();
  checkpointer.tick();
  checkpointer.membership(5);
  checkpointer.fencePassed();
  checkpointer.tick();
  assert.deepEqual(log, ['mark 1 4', 'fence', 'mark 2 5', 'fence']);
  assert.deepEqual(checkpointer.latest, { number: 2, epoch: 5 });
});
