import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Checkpoints } from './checkpoints.ts';
import type { ToWorker } from './datapath/messages.ts';

function bench(queueCount: number) {
  const sent: string[] = [];
  let writes = 0;
  let inFlight = 0;
  const say = (to: string, message: ToWorker): void => {
    if (message.type === 'mark' || message.type === 'checkpoint')
      sent.push(`${to}: ${message.type} ${message.number} epoch ${message.epoch}`);
  };
  const checkpoints = new Checkpoints({
    queues: {
      count: () => queueCount,
      post: (message) => say('all', message),
      postTo: (queueId, message) => say(String(queueId), message),
    },
    ...{ generation: 0, epoch: 7 },
    writeCount: () => writes,
    inFlightCount: () => inFlight,
  });
  const write = (): void => {
    writes++;
  };
  const keep = (count: number): void => {
    inFlight = count;
  };
  return { checkpoints, sent, write, keep };
}

test('one checkpoint follows when the fences of all queues have passed', () => {
  const { checkpoints, sent } = bench(3);
  checkpoints.tick();
  checkpoints.fencePassed(0, 1);
  checkpoints.fencePassed(2, 1);
  checkpoints.fencePassed(2, 1);
  assert.deepEqual(sent, ['all: mark 1 epoch 7']);
  checkpoints.fencePassed(1, 1);
  assert.deepEqual(sent, ['all: mark 1 epoch 7', '0: checkpoint 1 epoch 7']);
  assert.equal(checkpoints.sentCount, 1);
});

test('ticks mark only while something was written, or sent again, and once more', () => {
  const { checkpoints, sent, write } = bench(1);
  const round = (number: number): void => {
    checkpoints.tick();
    checkpoints.fencePassed(0, number);
  };
  round(1);
  round(2);
  round(3);
  assert.equal(checkpoints.sentCount, 2);
  write();
  round(3);
  checkpoints.linked();
  round(4);
  round(5);
  round(6);
  assert.equal(checkpoints.sentCount, 5);
  assert.equal(sent.length, 10);
});

test('what was taken long ago and waited is marked once more after its end', () => {
  const { checkpoints, sent, write, keep } = bench(1);
  let number = 0;
  const round = (): void => {
    const before = sent.length;
    checkpoints.tick();
    if (sent.length > before) checkpoints.fencePassed(0, ++number);
  };
  write();
  keep(1);
  for (let tick = 0; tick < 5; tick++) round();
  const whileBusy = checkpoints.sentCount;
  keep(0);
  round();
  assert.equal(checkpoints.sentCount, whileBusy + 1);
  for (let tick = 0; tick < 5; tick++) round();
  assert.ok(checkpoints.sentCount <= whileBusy + 2);
});

test('fences of an earlier mark do not count, nor those of an epoch that is over', () => {
  const { checkpoints, sent, write } = bench(2);
  checkpoints.tick();
  checkpoints.fencePassed(0, 1);
  checkpoints.membership(8);
  checkpoints.fencePassed(1, 1);
  assert.equal(checkpoints.sentCount, 0);
  write();
  checkpoints.tick();
  checkpoints.fencePassed(1, 1);
  checkpoints.fencePassed(0, 2);
  assert.equal(checkpoints.sentCount, 0);
  checkpoints.fencePassed(1, 2);
  assert.deepEqual(sent.slice(1), ['all: mark 2 epoch 8', '0: checkpoint 2 epoch 8']);
});
