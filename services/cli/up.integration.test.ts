/**
 * The contract of `blockwire up` for scripts, with real processes, as a script meets it: through the launcher, on
 * whatever Node the machine has. Needs nbdinfo (Debian package libnbd-bin).
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, afterEach, beforeEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const LAUNCHER = fileURLToPath(new URL('./blockwire.mjs', import.meta.url));
/** Without npm's additions, so that `env node` finds the machine's own Node where there is one. */
const PATH = (process.env.PATH ?? '')
  .split(':')
  .filter((folder) => !folder.includes('node_modules'))
  .join(':');
const environment = { ...process.env, PATH };

interface Ready {
  readonly rest: string;
  readonly nodes: readonly { readonly id: string; readonly nbd: string; readonly pid: number }[];
}

interface VolumeBody {
  readonly id: string;
  readonly sizeBytes: number;
  readonly replicas: readonly { readonly node: string; readonly uri: string }[];
}

interface Up {
  readonly process: ChildProcess;
  readonly lines: string[];
  readonly ready: Ready;
  readonly stderr: () => string;
}

/** A hung process is a failure of its test, not of the whole run. */
const bound = { timeout: 120_000 };

let dir = '';
const running: Up[] = [];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockwire-up-'));
});

afterEach(async () => {
  for (const up of running.splice(0)) await end(up, 'SIGTERM');
  rmSync(dir, { recursive: true });
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

async function startUp(restPort: number, command: readonly string[] = [LAUNCHER]): Promise<Up> {
  const args = ['up', '--dir', dir, '--nodes', '2', '--rest-port', String(restPort), '--no-agent', '--json'];
  const child = spawn(command[0]!, [...command.slice(1), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: environment,
  });
  let stderr = '';
  child.stderr.on('data', (chunk) => {
    stderr += String(chunk);
  });
  const lines: string[] = [];
  const reader = createInterface({ input: child.stdout });
  reader.on('line', (line) => lines.push(line));
  await Promise.race([once(reader, 'line'), once(child, 'exit')]);
  assert.equal(child.exitCode, null, `up failed: ${stderr}`);
  const up: Up = { process: child, lines, ready: JSON.parse(lines[0]!) as Ready, stderr: () => stderr };
  running.push(up);
  return up;
}

async function end({ process: child }: Up, signal: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode === null && child.signalCode === null) {
    const closed = once(child, 'close');
    child.kill(signal);
    await closed;
  }
  return child.exitCode;
}

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function blockwire(rest: string, ...args: string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    const env = { ...environment, BLOCKWIRE_REST: rest };
    execFile(LAUNCHER, args, { env }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

async function nbdSize(uri: string): Promise<number> {
  const { stdout } = await promisify(execFile)('nbdinfo', ['--size', uri], { timeout: 10_000 });
  return Number(stdout);
}

/** Every process that has the cluster's directory on its command line; one that waits to be reaped has none. */
async function processesOf(folder: string): Promise<string[]> {
  const { stdout } = await promisify(execFile)('ps', ['-eo', 'pid=,args=', '-ww']);
  return stdout.split('\n').filter((line) => line.includes(folder));
}

test(
  'up, a volume by CLI and one by REST, any NBD client, down without a trace, and up again',
  bound,
  async () => {
    const restPort = await freePort();
    const up = await startUp(restPort);
    const { rest, nodes } = up.ready;
    assert.equal(rest, `http://127.0.0.1:${restPort}`);
    assert.deepEqual(
      nodes.map(({ id }) => id),
      ['node-1', 'node-2'],
    );

    const created = await blockwire(
      rest,
      'volume',
      'create',
      'by-cli',
      '--size',
      '64MiB',
      '--replicas',
      '2',
      '--json',
    );
    assert.equal(created.code, 0, created.stderr);
    const volume = JSON.parse(created.stdout) as VolumeBody;
    assert.deepEqual(volume.replicas.map(({ node }) => node).sort(), ['node-1', 'node-2']);
    for (const { uri } of volume.replicas) assert.equal(await nbdSize(uri), 64 * 1024 * 1024);

    const response = await fetch(`${rest}/v1/volumes`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ name: 'by-rest', sizeBytes: 32 * 1024 * 1024, replicas: 1 }),
    });
    assert.equal(response.status, 201);
    const second = (await response.json()) as VolumeBody;
    assert.equal(await nbdSize(second.replicas[0]!.uri), second.sizeBytes);

    const list = await blockwire(rest, 'volume', 'list');
    assert.match(list.stdout, /^by-cli +vol-[0-9a-f]{12} +64 MiB +available +node-[12], node-[12]$/m);
    assert.match((await blockwire(rest, 'node', 'list')).stdout, /^node-1 +online +127\.0\.0\.1:/m);
    const taken = await blockwire(rest, 'volume', 'create', 'by-cli', '--size', '1MiB');
    assert.equal(taken.code, 1);
    assert.match(taken.stderr, /^blockwire: BW_VOLUME_NAME_TAKEN: /);
    const detached = await blockwire(rest, 'volume', 'detach', 'by-cli');
    assert.deepEqual([detached.code, detached.stderr.split(':')[1]], [1, ' BW_ATTACHMENT_NOT_FOUND']);

    assert.equal((await blockwire(rest, 'volume', 'delete', 'by-rest')).code, 0);
    assert.match((await blockwire(rest, 'volume', 'show', 'by-rest')).stderr, /BW_VOLUME_NOT_FOUND/);

    assert.equal(await end(up, 'SIGTERM'), 0, up.stderr());
    assert.equal(up.lines.length, 1);
    assert.deepEqual(await processesOf(dir), []);
    assert.equal((await blockwire(rest, 'volume', 'list')).code, 3);

    const again = await startUp(restPort);
    assert.deepEqual(
      again.ready.nodes.map(({ id, nbd }) => [id, nbd]),
      nodes.map(({ id, nbd }) => [id, nbd]),
    );
    const kept = await blockwire(rest, 'volume', 'show', 'by-cli', '--json');
    assert.deepEqual((JSON.parse(kept.stdout) as VolumeBody).replicas, volume.replicas);
    assert.equal(await nbdSize(volume.replicas[0]!.uri), volume.sizeBytes);
    assert.equal(await end(again, 'SIGINT'), 0, again.stderr());
  },
);

test('a node’s death is reported and survived; a second up in the directory is refused', bound, async () => {
  const up = await startUp(0);
  const { rest, nodes } = up.ready;
  process.kill(nodes[0]!.pid, 'SIGKILL');
  while (!/node-1 .* ended: SIGKILL/.test(up.stderr())) await once(up.process.stderr!, 'data');
  assert.equal(
    (await blockwire(rest, 'volume', 'create', 'one', '--size', '1MiB', '--replicas', '1')).code,
    0,
  );
  const second = await blockwire(rest, 'up', '--dir', dir, '--rest-port', '0', '--no-agent', '--json');
  assert.equal(second.code, 1);
  assert.match(second.stderr, /^blockwire: BW_CONFLICT: another "blockwire up" \(pid \d+\)/);
  assert.equal(await end(up, 'SIGTERM'), 0);
});

test('an up that was killed outright does not stand in the way of the next one', bound, async () => {
  const up = await startUp(0);
  const pids = up.ready.nodes.map(({ pid }) => String(pid));
  const run = JSON.parse(readFileSync(join(dir, 'run.json'), 'utf8')) as { up: { pid: number } };
  process.kill(run.up.pid, 'SIGKILL');
  await once(up.process, 'close');
  const next = await startUp(0);
  const left = await processesOf(dir);
  for (const pid of pids)
    assert.ok(!left.some((line) => line.trim().split(' ')[0] === pid), `node ${pid} still runs`);
  assert.deepEqual(
    next.ready.nodes.map(({ nbd }) => nbd),
    up.ready.nodes.map(({ nbd }) => nbd),
  );
});

after(() => assert.equal(running.length, 0));
