/** The control plane as its own process: start, garbage at its ports, SIGTERM, SIGKILL. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { FakeAgent, FakeNode } from './fakes.ts';

interface Running {
  readonly child: ChildProcess;
  readonly rest: string;
  readonly grpc: string;
}

const MAIN = join(import.meta.dirname, '..', 'main.ts');

function scratchDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'bw-control-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

async function start(t: TestContext, dataDir: string): Promise<Running> {
  const args = [MAIN, '--json', '--rest-port', '0', '--grpc-port', '0', '--data-dir', dataDir];
  const child = spawn(process.execPath, args, {
    stdio: ['ignore', 'pipe', 'ignore'],
    env: { ...process.env, BLOCKWIRE_LOG: 'fatal' },
  });
  t.after(() => child.kill('SIGKILL'));
  const [line] = await once(createInterface(child.stdout!), 'line');
  const { rest, grpc } = JSON.parse(String(line)) as { rest: string; grpc: string };
  return { child, rest, grpc };
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<unknown> {
  const exited = once(child, 'exit');
  child.kill(signal);
  return (await exited)[0];
}

function post(rest: string, path: string, body: unknown): Promise<Response> {
  return fetch(`${rest}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
}

async function getJson(rest: string, path: string): Promise<unknown> {
  return (await fetch(`${rest}${path}`)).json();
}

/** Sends bytes and returns what comes back until the connection ends. */
async function sendRaw(address: string, bytes: string): Promise<string> {
  const { hostname, port } = new URL(address);
  const socket = connect(Number(port), hostname);
  let text = '';
  socket.setEncoding('utf8').on('data', (chunk) => {
    text += chunk;
  });
  socket.on('error', () => {});
  socket.end(bytes);
  await once(socket, 'close');
  return text;
}

test('SIGTERM ends it with 0, also with members connected; a second start finds everything', async (t) => {
  const dataDir = scratchDirectory(t);
  const node = new FakeNode('node-1');
  t.after(() => node.close());
  const first = await start(t, dataDir);
  await node.connect(first.grpc);
  const created = await post(first.rest, '/v1/volumes', { name: 'a', sizeBytes: 2 ** 20, replicas: 1 });
  assert.equal(created.status, 201);
  const volume: unknown = await created.json();
  assert.equal(await end(first.child, 'SIGTERM'), 0);
  const second = await start(t, dataDir);
  assert.deepEqual(await getJson(second.rest, '/v1/volumes'), [volume]);
  assert.equal(await end(second.child, 'SIGINT'), 0);
});

test('garbage at either port gets an answer or an end, and the process lives', async (t) => {
  const { rest, grpc } = await start(t, scratchDirectory(t));
  for (const bytes of [
    '\x00\x01\x02garbage\r\n\r\n',
    'GET / HTTP/9.9\r\n\r\n',
    'POST /v1/volumes HTTP/1.1\r\n',
  ]) {
    const answer = await sendRaw(rest, bytes);
    assert.match(answer, /^HTTP\/1.1 400 /);
    assert.match(answer, /"code":"BW_INVALID_ARGUMENT"/);
  }
  await sendRaw(`http://${grpc}`, 'not http2 at all\r\n\r\n');
  const cut =
    'POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"na';
  await sendRaw(rest, cut);
  assert.equal((await fetch(`${rest}/healthz`)).status, 200);
});

test('after SIGKILL in the middle of a create and of an attach, both are undone', async (t) => {
  const dataDir = scratchDirectory(t);
  const node = new FakeNode('node-1');
  const agent = new FakeAgent('agent-1');
  t.after(() => Promise.all([node.close(), agent.close()]));
  const first = await start(t, dataDir);
  await node.connect(first.grpc);
  await agent.connect(first.grpc);
  const created = await post(first.rest, '/v1/volumes', { name: 'a', sizeBytes: 2 ** 20, replicas: 1 });
  const { id } = (await created.json()) as { id: string };

  // Both carry out their command, and their word does not get through.
  const asked = Promise.withResolvers<void>();
  let silent = 0;
  const stayMute = (): 'never' => {
    silent += 1;
    if (silent === 2) asked.resolve();
    return 'never';
  };
  agent.react = ({ attach }) => (attach ? stayMute() : undefined);
  const attaching = post(first.rest, '/v1/attachments', { volume: id }).catch(() => {});
  node.react = ({ createReplica }) => (createReplica ? stayMute() : undefined);
  const creating = post(first.rest, '/v1/volumes', { name: 'b', sizeBytes: 2 ** 20, replicas: 1 }).catch(
    () => {},
  );
  await asked.promise;
  await end(first.child, 'SIGKILL');
  await Promise.all([attaching, creating]);

  const doomedVolume =
    node.commands.findLast(({ createReplica }) => createReplica)?.createReplica?.volumeId ?? '';
  const doomedAttachment = agent.commands[0]?.attach?.attachmentId;
  node.replicas.set(doomedVolume, { sizeBytes: 2 ** 20, generation: 1, epoch: 1 });
  const second = await start(t, dataDir);
  const list = (await getJson(second.rest, '/v1/volumes')) as {
    id: string;
    state: string;
    generation: number;
  }[];
  assert.deepEqual(
    list.map((volume) => [volume.id, volume.state, volume.generation]),
    [[id, 'available', 2]],
  );
  assert.deepEqual(await getJson(second.rest, '/v1/attachments'), []);
  await node.connect(second.grpc);
  await agent.connect(second.grpc);
  while (node.replicas.has(doomedVolume)) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(node.replicas.has(id));
  while (!agent.commands.some(({ detach }) => detach?.attachmentId === doomedAttachment)) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
});

test('a data directory that is in use, and a port that is taken, end the start with a message', async (t) => {
  const dataDir = scratchDirectory(t);
  const { rest } = await start(t, dataDir);
  const { port } = new URL(rest);
  for (const [args, code] of [
    [['--rest-port', '0', '--data-dir', dataDir], 'BW_CONFLICT'],
    [['--rest-port', port, '--data-dir', scratchDirectory(t)], 'BW_CONFLICT'],
    [['--rest-port', '0', '--data-dir', join(dataDir, 'control.db')], 'BW_IO'],
    [['--rest-port', 'none'], 'BW_INVALID_ARGUMENT'],
  ] as const) {
    const child = spawn(process.execPath, [MAIN, '--grpc-port', '0', ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let log = '';
    child.stderr.on('data', (chunk) => {
      log += chunk;
    });
    const [status] = await once(child, 'close');
    assert.equal(status, 1, log);
    assert.match(log, new RegExp(`"code":"${code}"`));
  }
});
