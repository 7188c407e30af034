/** The cluster's processes are stand-ins here: a control plane that says what it is told, and idle nodes. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { CommandError } from '../errors.ts';
import { Child } from './child.ts';
import { Cluster } from './cluster.ts';
import { claimDirectory, markRunning, releaseDirectory } from './layout.ts';
import type { Plan, PlannedProcess } from './plan.ts';
import { PortChooser } from './ports.ts';

const NODE = { state: 'online', nbd: '127.0.0.1:9', capacityBytes: 0, freeBytes: 0 };
const IDLE = 'console.log("{}"); setInterval(() => {}, 1000);';

let dir = '';
let said: string[] = [];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockwire-cluster-'));
  mkdirSync(join(dir, 'log'));
  said = [];
});

afterEach(() => rmSync(dir, { recursive: true }));

function script(name: string, source: string): PlannedProcess {
  return { name, command: [process.execPath, '-e', source] };
}

async function makeCluster(nodeSource: string, signal = new AbortController().signal): Promise<Cluster> {
  const port = await new PortChooser('127.0.0.1').choose({ purpose: '', wanted: 0, preferred: [] });
  const body = JSON.stringify(['node-1', 'node-2'].map((id) => ({ ...NODE, id })));
  const control = `require('node:http').createServer((_, response) => response.end(${JSON.stringify(body)}))
    .listen(${port}, '127.0.0.1', () => console.log('{}'));`;
  const plan: Plan = {
    rest: `http://127.0.0.1:${port}`,
    grpc: '',
    control: script('control', control),
    nodes: ['node-1', 'node-2'].map((name) => ({ ...script(name, nodeSource), nbd: NODE.nbd, metrics: '' })),
    agent: null,
  };
  return new Cluster({
    dir,
    plan,
    timeoutMs: 20_000,
    signal,
    onStarted: () => {},
    say: (message) => said.push(message),
  });
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

test('all processes run when start resolves, and none when stop does', async () => {
  const cluster = await makeCluster(IDLE);
  await cluster.start();
  const pids = ['control', 'node-1', 'node-2'].map((name) => cluster.pidOf(name)!);
  assert.deepEqual(pids.map(isRunning), [true, true, true]);
  await cluster.stop();
  assert.deepEqual(pids.map(isRunning), [false, false, false]);
  assert.deepEqual(said, []);
});

test('a process that fails to start is named, with the end of its log', async () => {
  const cluster = await makeCluster('console.error("the disk is on fire"); process.exit(7);');
  await assert.rejects(cluster.start(), (error) => {
    assert.ok(error instanceof CommandError);
    assert.match(error.message, /node-[12] failed to start \(exit code 7\)/);
    assert.match(error.message, /the disk is on fire/);
    return true;
  });
  await cluster.stop();
});

test('a node that dies is reported and the rest goes on', async () => {
  const cluster = await makeCluster(IDLE);
  await cluster.start();
  const [control, victim, other] = ['control', 'node-1', 'node-2'].map((name) => cluster.pidOf(name)!);
  process.kill(victim!, 'SIGKILL');
  while (said.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.match(said[0]!, /^node-1 \(pid \d+\) ended: SIGKILL$/);
  assert.deepEqual(
    [control, other].map((pid) => isRunning(pid!)),
    [true, true],
  );
  await cluster.stop();
});

test('the end of the control plane is told', async () => {
  const cluster = await makeCluster(IDLE);
  await cluster.start();
  process.kill(cluster.pidOf('control')!, 'SIGKILL');
  assert.deepEqual(await cluster.controlEnded, { code: null, signal: 'SIGKILL' });
  await cluster.stop();
});

test('an abort ends a start that would wait', async () => {
  const abort = new AbortController();
  const cluster = await makeCluster('setInterval(() => {}, 1000);', abort.signal);
  const started = cluster.start();
  abort.abort();
  await assert.rejects(
    started,
    (error) => error instanceof CommandError && error.code === 'BW_SHUTTING_DOWN',
  );
  await cluster.stop();
});

test('a process that ignores SIGTERM is killed after the bound', async () => {
  const source = 'process.on("SIGTERM", () => {}); console.log("{}"); setInterval(() => {}, 1000);';
  const child = new Child({ ...script('stubborn', source), logPath: join(dir, 'log', 'stubborn.log') });
  await child.ready;
  assert.equal(await child.stop(10), false);
  assert.equal(child.exit?.signal, 'SIGKILL');
});

test('a program that does not exist ends like one that failed', async () => {
  const child = new Child({ name: 'x', command: ['/does/not/exist'], logPath: join(dir, 'log', 'x.log') });
  assert.notEqual((await child.exited).code, 0);
  assert.equal(await child.stop(10), true);
});

test('the log of the run before is kept aside', async () => {
  for (const word of ['first', 'second']) {
    const logPath = join(dir, 'log', 'x.log');
    await new Child({ ...script('x', `console.error('${word}')`), logPath }).exited;
  }
  assert.equal(readFileSync(join(dir, 'log', 'x.log'), 'utf8'), 'second\n');
  assert.equal(readFileSync(join(dir, 'log', 'x.log.1'), 'utf8'), 'first\n');
});

test('a directory in use is refused, a free one can be claimed again', async () => {
  await claimDirectory(dir);
  await assert.rejects(
    claimDirectory(dir),
    (error) => error instanceof CommandError && error.code === 'BW_CONFLICT',
  );
  releaseDirectory(dir);
  await claimDirectory(dir);
});

test('what a killed run left behind is ended first', async () => {
  const child = new Child({ ...script('node-1', IDLE), logPath: join(dir, 'log', 'node-1.log') });
  await child.ready;
  markRunning(dir, [{ name: 'node-1', pid: child.pid }]);
  const run = JSON.parse(readFileSync(join(dir, 'run.json'), 'utf8')) as { up: { startTicks: string } };
  run.up.startTicks = '1';
  writeFileSync(join(dir, 'run.json'), JSON.stringify(run));
  await claimDirectory(dir);
  assert.equal((await child.exited).signal, 'SIGTERM');
});

test('a damaged file is an error that says which', async () => {
  writeFileSync(join(dir, 'run.json'), '{');
  await assert.rejects(claimDirectory(dir), /run\.json is damaged/);
});
