import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, test } from 'node:test';
import { CommandError, ExitCode } from '../errors.ts';
import { FrameParser } from './event-stream.ts';
import { type Followed, type FollowRequest, follow } from './follow.ts';

const bound = { timeout: 30_000 };
const EVERYTHING: FollowRequest = { volumeId: null, after: null };

let server: Server | null = null;

afterEach(() => {
  server?.closeAllConnections();
  server?.close();
  server = null;
});

/** The address of a server that answers one connection after the other like this; after the last it hangs up. */
async function serve(
  ...answers: readonly ((response: ServerResponse, request: IncomingMessage) => void)[]
): Promise<string> {
  const left = [...answers];
  server = createServer((request, response) => {
    const answer = left.shift();
    if (answer === undefined) request.socket.destroy();
    else answer(response, request);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function frame(id: number): string {
  return `id: ${id}\ndata: ${JSON.stringify({ id, at: 'then', type: 'node.online', node: 'n' })}\n\n`;
}

async function take(followed: AsyncGenerator<Followed>, count: number): Promise<string[]> {
  const found: string[] = [];
  for await (const item of followed) {
    found.push(item.kind === 'event' ? String(item.event.id) : item.text);
    if (found.length === count) break;
  }
  return found;
}

test('frames come in any pieces; one without data is none but for its id', () => {
  const parser = new FrameParser();
  const text = 'id: 4\ndata: a: b\n\n:\nid: 9\n\nevent: end\ndata:x\ndata: y\n\n';
  assert.deepEqual(
    [...text].flatMap((piece) => [...parser.push(piece)]),
    [
      { id: '4', kind: 'message', data: 'a: b' },
      { id: '9', kind: 'message', data: null },
      { id: '9', kind: 'end', data: 'x\ny' },
    ],
  );
});

test('a connection that breaks is made again, with the last id that was heard', bound, async () => {
  const seen: unknown[] = [];
  const base = await serve(
    (response, request) => {
      seen.push([request.url, request.headers['last-event-id']]);
      response.write(`${frame(1)}${frame(2)}:\nid: 5\n\n`, () => request.socket.destroy());
    },
    (response, request) => {
      seen.push([request.url, request.headers['last-event-id']]);
      response.write(frame(6));
    },
  );
  const found = await take(follow(base, { volumeId: 'vol-1', after: '0' }), 4);
  assert.deepEqual([found[0], found[1], found[3]], ['1', '2', '6']);
  assert.match(found[2]!, /no control plane at/);
  assert.deepEqual(seen, [
    ['/v1/events?volume=vol-1', '0'],
    ['/v1/events?volume=vol-1', '5'],
  ]);
});

test('why the stream ended is passed on, and it goes on', bound, async () => {
  const end = 'event: end\ndata: {"code":"BW_SHUTTING_DOWN","message":"the control plane is stopping"}\n\n';
  const base = await serve(
    (response) => response.end(`${frame(1)}${end}`),
    (response) => response.write(`id: 7\nevent: gap\ndata: {"after":7}\n\n${frame(8)}`),
  );
  assert.deepEqual(await take(follow(base, EVERYTHING), 4), [
    ...['1', 'BW_SHUTTING_DOWN: the control plane is stopping'],
    ...['events before these are not kept any more', '8'],
  ]);
});

test('a refusal, another program and nobody at the first attempt end it', bound, async () => {
  const failure = async (base: string): Promise<unknown[]> => {
    const error = await take(follow(base, EVERYTHING), 1).catch((thrown: unknown) => thrown);
    assert.ok(error instanceof CommandError);
    return [error.code, error.exitCode];
  };
  const body = JSON.stringify({ code: 'BW_OVERLOADED', message: '256 readers' });
  const base = await serve(
    (response) => response.writeHead(503).end(body),
    (response) => response.end('data: <html>\n\n'),
  );
  assert.deepEqual(await failure(base), ['BW_OVERLOADED', ExitCode.FAILED]);
  assert.deepEqual(await failure(base), ['BW_PROTOCOL', ExitCode.FAILED]);
  assert.deepEqual(await failure(base), ['BW_PEER_UNREACHABLE', ExitCode.UNREACHABLE]);
});
