import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DatapathLadder } from './messages.ts';
import { ZeroCopyChoice } from './zero-copy-choice.ts';

const LARGE = 65536;

function choice(send: DatapathLadder['send']): ZeroCopyChoice {
  const ladder = { receive: 'recv', buffers: 'auto', smallBytesMax: 4096 } as const;
  return new ZeroCopyChoice({ ...ladder, send, zeroCopyBytesMin: LARGE });
}

/** Sends so many large payloads, of which the kernel copies the first `copied`; returns how many went without a copy. */
function send(tried: ZeroCopyChoice, count: number, copied: number): number {
  let zeroCopies = 0;
  for (let i = 0; i < count; i++) {
    if (!tried.take(LARGE)) continue;
    zeroCopies++;
    tried.noteOutcome(i < copied);
  }
  return zeroCopies;
}

test('small payloads never, and none where it is not wanted', () => {
  assert.equal(choice('auto').take(LARGE - 1), false);
  assert.equal(choice('plain').take(LARGE), false);
});

test('where most are copied after all the next ones go without; then it is tried again', () => {
  const tried = choice('auto');
  assert.equal(send(tried, 64, 33), 64);
  assert.equal(send(tried, 4096, 0), 0);
  assert.equal(send(tried, 64, 32), 64);
  assert.equal(send(tried, 64, 64), 64);
  assert.equal(tried.take(LARGE), false);
  tried.reset();
  assert.equal(tried.take(LARGE), true);
});

test('where it was asked for it stays', () => {
  assert.equal(send(choice('zc'), 1000, 1000), 1000);
});
