import assert from 'node:assert/strict';
import { test } from 'node:test';
import { busyUs, idleUs, processTimes, processTreeUs, threadsUs } from './cpu.ts';

test('busy time leaves idle, I/O wait and guest time out', () => {
  assert.equal(busyUs('cpu  100 10 50 9999 777 3 4 5 60 0'), 172 * 10_000);
  assert.equal(idleUs('cpu  100 10 50 9999 777 3 4 5 60 0'), 10_776 * 10_000);
});

test("a process's times are found behind whatever its name contains", () => {
  assert.deepEqual(processTimes('42 (a) S 1 (b) S 7 0 0 0 0 0 0 0 0 0 11 22 33 44 20 0 1 0'), {
    parentPid: 7,
    ownUs: 330_000,
    childrenUs: 770_000,
  });
  assert.equal(processTimes(''), null);
});

test('threads are summed by a part of their names, which may contain anything', () => {
  const line = (name: string) => `42 (${name}) S 1 7 0 0 0 0 0 0 0 0 11 22 0 0 20 0 1 0`;
  const stats = [line('node-V8Worker-0'), line('V8Worker) S 1 ('), line('ublk-0-0'), ''].join('\n');
  assert.equal(threadsUs(stats, 'V8Worker'), 660_000);
});

test('work of this process shows up in its tree', () => {
  const before = processTreeUs(process.pid);
  const start = process.cpuUsage();
  let used = 0;
  while (used < 100_000) {
    const { user, system } = process.cpuUsage(start);
    used = user + system;
  }
  assert.ok(processTreeUs(process.pid) - before >= 50_000);
});
