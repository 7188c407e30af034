import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Fleet } from './fleet.ts';

function makeFleet(t: TestContext) {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_000_000 });
  const changes: [string, boolean][] = [];
  let commandCount = 0;
  const fleet = new Fleet<string, string>({
    noun: 'node',
    offlineCode: 'BW_NODE_OFFLINE',
    unknownCode: 'BW_NODE_NOT_FOUND',
    heartbeatIntervalMs: 2000,
    missedMax: 3,
    reconnectGraceMs: 5000,
    now: () => Date.now(),
    newCommandId: () => `cmd-${++commandCount}`,
    onChange: (id, online) => changes.push([id, online]),
  });
  const connect = (id: string) => {
    const delivered: [string, string][] = [];
    const watch = { delivered, ended: false, close: () => {} };
    fleet.register(id);
    watch.close = fleet.openWatch(id, {
      deliver: (commandId, action) => delivered.push([commandId, action]),
      end: () => {
        watch.ended = true;
      },
    });
    return watch;
  };
  const pass = (ms: number): void => t.mock.timers.tick(ms);
  return { fleet, changes, connect, pass };
}

test('a member is online while its watch is open', (t) => {
  const { fleet, changes, connect } = makeFleet(t);
  assert.throws(() => fleet.heartbeat('n1'), { code: 'BW_NODE_NOT_FOUND' });
  fleet.register('n1');
  assert.equal(fleet.isOnline('n1'), false);
  const watch = connect('n1');
  assert.equal(fleet.isOnline('n1'), true);
  watch.close();
  assert.deepEqual(changes, [
    ['n1', true],
    ['n1', false],
  ]);
});

test('three missed heartbeats take a member offline, fewer do not', (t) => {
  const { fleet, connect, pass } = makeFleet(t);
  const watch = connect('n1');
  pass(6000);
  fleet.tick();
  assert.equal(fleet.isOnline('n1'), true);
  fleet.heartbeat('n1');
  pass(6000);
  fleet.tick();
  assert.equal(fleet.isOnline('n1'), true);
  pass(1);
  fleet.tick();
  assert.equal(fleet.isOnline('n1'), false);
  assert.equal(watch.ended, true);
});

test('a command ends with what the member answers', async (t) => {
  const { fleet, connect } = makeFleet(t);
  const watch = connect('n1');
  const good = fleet.dispatch('n1', 'do', { deadlineMs: 100 });
  const bad = fleet.dispatch('n1', 'fail', { deadlineMs: 100 });
  assert.deepEqual(watch.delivered, [
    ['cmd-1', 'do'],
    ['cmd-2', 'fail'],
  ]);
  fleet.complete('n1', 'cmd-1', { result: 'done' });
  fleet.complete('n1', 'cmd-2', new BlockwireError('BW_REPLICA_EXISTS', 'there is one'));
  assert.equal(await good, 'done');
  await assert.rejects(bad, { code: 'BW_REPLICA_EXISTS' });
  // A repeated answer is harmless.
  fleet.complete('n1', 'cmd-1', { result: 'again' });
  assert.equal(fleet.outstandingCount, 0);
});

test('a command ends at its deadline, and its late answer is dropped', async (t) => {
  const { fleet, connect, pass } = makeFleet(t);
  connect('n1');
  const late = fleet.dispatch('n1', 'do', { deadlineMs: 100 });
  pass(100);
  await assert.rejects(late, { code: 'BW_TIMEOUT' });
  fleet.complete('n1', 'cmd-1', { result: 'done' });
});

test('going offline fails what is outstanding, and new commands fail at once', async (t) => {
  const { fleet, connect } = makeFleet(t);
  const watch = connect('n1');
  const cut = fleet.dispatch('n1', 'do', { deadlineMs: 100 });
  watch.close();
  await assert.rejects(cut, { code: 'BW_NODE_OFFLINE' });
  await assert.rejects(fleet.dispatch('n1', 'do', { deadlineMs: 100 }), { code: 'BW_NODE_OFFLINE' });
  await assert.rejects(fleet.dispatch('n2', 'do', { deadlineMs: 100 }), { code: 'BW_NODE_OFFLINE' });
});

test('a new watch ends the old one, whose closing then changes nothing', (t) => {
  const { fleet, connect } = makeFleet(t);
  const old = connect('n1');
  const fresh = connect('n1');
  assert.equal(old.ended, true);
  old.close();
  assert.equal(fleet.isOnline('n1'), true);
  assert.equal(fresh.ended, false);
});

test('waitOnline waits for a member that may be back, and not for one long gone', async (t) => {
  const { fleet, connect, pass } = makeFleet(t);
  const soon = fleet.waitOnline('n1');
  const never = fleet.waitOnline('n2');
  connect('n1').close();
  assert.equal(await soon, true);
  pass(5000);
  assert.equal(await never, false);
  assert.equal(await fleet.waitOnline('n1'), false);
  connect('n1');
  assert.equal(await fleet.waitOnline('n1'), true);
});

test('one that was long gone and has just registered is waited for', async (t) => {
  const { fleet, connect, pass } = makeFleet(t);
  connect('n1').close();
  pass(60_000);
  assert.equal(await fleet.waitOnline('n1'), false);
  fleet.register('n1');
  const back = fleet.waitOnline('n1');
  connect('n1');
  assert.equal(await back, true);
});

test('closing fails commands and waiting, and refuses what comes later', async (t) => {
  const { fleet, connect } = makeFleet(t);
  connect('n1');
  const cut = fleet.dispatch('n1', 'do', { deadlineMs: 100 });
  const waiting = fleet.waitOnline('n2');
  fleet.close();
  await assert.rejects(cut, { code: 'BW_SHUTTING_DOWN' });
  assert.equal(await waiting, false);
  assert.throws(() => fleet.register('n3'), { code: 'BW_SHUTTING_DOWN' });
  await assert.rejects(fleet.dispatch('n1', 'do', { deadlineMs: 100 }), { code: 'BW_SHUTTING_DOWN' });
});
