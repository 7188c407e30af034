import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Availability } from './availability.ts';
import { quietLog } from './testing/quiet-log.ts';

function bench(ioTimeoutMs = 0) {
  const links = [
    { seen: false, up: false, reason: '' },
    { seen: false, up: false, reason: '' },
  ];
  const failing: boolean[] = [];
  const availability = new Availability({
    log: quietLog(),
    volumeId: 'vol',
    ioTimeoutMs,
    link: (replica) => links[replica]!,
    nodeIdOf: (replica) => `n${replica}`,
    isServed: () => links.some(({ up }) => up),
    replicas: () => [],
    failUnserved: (on) => failing.push(on),
  });
  const set = (replica: number, up: boolean, reason = ''): void => {
    links[replica] = { seen: true, up, reason };
    availability.linked(replica);
  };
  return { availability, set, failing };
}

const never = new Promise<void>(() => {});

test('connected waits for every replica to be tried, but no longer than it may when one serves', async () => {
  const { availability, set } = bench();
  let isDone = false;
  const done = availability.connected([0, 1], 1000, never).then(() => {
    isDone = true;
  });
  set(0, true);
  await sleep(5);
  assert.equal(isDone, false);
  set(1, false, 'ECONNREFUSED');
  await done;
  const other = bench();
  other.set(1, true);
  await other.availability.connected([0, 1], 10, never);
});

test('when none serves, the reason of each is told', async () => {
  const { availability, set } = bench();
  set(0, false, 'ECONNREFUSED');
  await assert.rejects(availability.connected([0, 1], 10, never), {
    code: 'BW_NO_IN_SYNC_REPLICA',
    message: /n0: ECONNREFUSED; n1: no answer/,
  });
});

test('I/O fails after its timeout, and no more when a replica is back', async () => {
  const { availability, set, failing } = bench(10);
  set(0, true);
  availability.begin();
  set(0, false);
  assert.equal(availability.ioState, 'waiting');
  await sleep(30);
  assert.equal(availability.ioState, 'failing');
  set(1, true);
  assert.equal(availability.ioState, 'ok');
  assert.deepEqual(failing, [true, false]);
});

test('who waits to be served is told when the device ends', async () => {
  const { availability } = bench();
  const served = availability.served();
  availability.end();
  await assert.rejects(served, { code: 'BW_SHUTTING_DOWN' });
});
