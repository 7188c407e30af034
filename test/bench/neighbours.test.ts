import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { programsUs, QuietTimes } from './neighbours.ts';

test('what a hypervisor kept counts, idle time and interrupts do not', () => {
  assert.equal(programsUs('cpu  100 10 50 9999 777 3 4 5 60 0'), 165 * 10_000);
});

test('a cell that others disturbed is measured again, and the least disturbed one counts', async () => {
  // Read before and after each cell, and twice while it is waited for quiet.
  const shares = [0, 0, 0, 0.9, 0, 0, 0, 0.3, 0, 0, 0, 0.6];
  const quiet = new QuietTimes(60_000, () => shares.shift()!);
  let cells = 0;
  assert.deepEqual(await quiet.measure(async () => ++cells), { measured: 2, othersShare: 0.3 });
  assert.equal(cells, 3);
});

test('without patience a cell is measured once, at once', async () => {
  const shares = [0, 0.9];
  const quiet = new QuietTimes(0, () => shares.shift()!);
  assert.deepEqual(await quiet.measure(async () => 'cell'), { measured: 'cell', othersShare: 0.9 });
});

test('patience ends, also while it is waited for quiet', async () => {
  const startMs = performance.now();
  const quiet = new QuietTimes(1200, () => 0.9);
  await quiet.measure(async () => {});
  await quiet.measure(async () => {});
  const ms = performance.now() - startMs;
  assert.ok(ms > 1000 && ms < 10_000, `${ms} ms`);
});

test('work of a stranger is seen', async () => {
  // In a session of its own under process 1: nobody of ours.
  const parent = spawn('setsid', ['--fork', 'sh', '-c', 'echo $$; while :; do :; done']);
  const pid = Number(await new Promise((resolve) => parent.stdout.once('data', resolve)));
  try {
    const { othersShare } = await new QuietTimes(0).measure(() => sleep(500));
    assert.ok(othersShare > 0.1, `${othersShare}`);
  } finally {
    process.kill(pid, 'SIGKILL');
  }
});
