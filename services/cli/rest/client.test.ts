import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterEach, test } from 'node:test';
import { CommandError, ExitCode } from '../errors.ts';
import { RestClient } from './client.ts';

const VOLUME = {
  id: 'vol-0123456789ab',
  name: 'data',
  sizeBytes: 4096,
  state: 'available',
  replicas: [{ node: 'node-1', state: 'inSync', uri: 'nbd://127.0.0.1:10809/vol-0123456789ab' }],
  extra: 'of a newer version',
};

let server: Server | null = null;

afterEach(() => {
  server?.closeAllConnections();
  server?.close();
  server = null;
});

async function serve(
  handler: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<RestClient> {
  server = createServer(handler).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return new RestClient(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
}

function answer(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

function failsWith(code: string, exitCode: ExitCode): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof CommandError);
    assert.deepEqual([error.code, error.exitCode], [code, exitCode]);
    return true;
  };
}

test('creating a volume sends the body with an idempotency key and keeps unknown fields', async () => {
  const seen: { key: unknown; body: string; url: string | undefined }[] = [];
  const client = await serve(async (request, response) => {
    seen.push({ key: request.headers['idempotency-key'], body: await text(request), url: request.url });
    answer(response, 201, VOLUME);
  });
  const volume = await client.createVolume({ name: 'data', sizeBytes: 4096, replicas: 1 });
  await client.createVolume({ name: 'data', sizeBytes: 4096, replicas: 1 });
  assert.deepEqual(volume, VOLUME);
  assert.equal(seen[0]?.url, '/v1/volumes');
  assert.deepEqual(JSON.parse(seen[0]!.body), { name: 'data', sizeBytes: 4096, replicas: 1 });
  assert.match(String(seen[0]!.key), /^[0-9a-f-]{36}$/);
  assert.notEqual(seen[0]!.key, seen[1]!.key);
});

test('an id is looked up by itself, a name by query, whatever characters it has', async () => {
  const urls: string[] = [];
  const client = await serve((request, response) => {
    urls.push(request.url!);
    const list = request.url!.includes('?');
    answer(response, 200, list ? [{ ...VOLUME, name: 'a&b c' }] : VOLUME);
  });
  await client.findVolume('vol-0123456789ab');
  await client.findVolume('a&b c');
  assert.deepEqual(urls, ['/v1/volumes/vol-0123456789ab', '/v1/volumes?name=a%26b+c']);
});

test('a name that the answer does not hold is not found, even if the server ignored the query', async () => {
  const client = await serve((_request, response) => answer(response, 200, [VOLUME]));
  await assert.rejects(client.findVolume('other'), failsWith('BW_VOLUME_NOT_FOUND', ExitCode.FAILED));
});

test('the server’s code and message are the error, also a code this version does not know', async () => {
  const client = await serve((_request, response) =>
    answer(response, 409, { code: 'BW_FROM_THE_FUTURE', message: 'do this' }),
  );
  await assert.rejects(client.listVolumes(), failsWith('BW_FROM_THE_FUTURE', ExitCode.FAILED));
});

test('an answer of another shape is a protocol error that names the field', async () => {
  const client = await serve((_request, response) =>
    answer(response, 200, [{ ...VOLUME, sizeBytes: 'big' }]),
  );
  await assert.rejects(client.listVolumes(), (error) => {
    failsWith('BW_PROTOCOL', ExitCode.FAILED)(error);
    return /\/0\/sizeBytes/.test(String(error));
  });
});

test('a page of another program is a protocol error, whatever its status', async () => {
  for (const status of [200, 500]) {
    const client = await serve((_request, response) => response.writeHead(status).end('<html>'));
    await assert.rejects(client.listVolumes(), failsWith('BW_PROTOCOL', ExitCode.FAILED));
    server!.close();
  }
});

test('nobody listening, or a connection that breaks, is unreachable: exit code 3', async () => {
  const client = await serve((request) => request.socket.destroy());
  await assert.rejects(client.listVolumes(), failsWith('BW_PEER_UNREACHABLE', ExitCode.UNREACHABLE));
  server!.close();
  await assert.rejects(client.listVolumes(), failsWith('BW_PEER_UNREACHABLE', ExitCode.UNREACHABLE));
});

test('a server that never answers ends in BW_TIMEOUT', async () => {
  const client = await serve(() => {});
  await assert.rejects(client.listNodes(20), failsWith('BW_TIMEOUT', ExitCode.FAILED));
});

test('an answer without a body is enough for a deletion, and force is passed on', async () => {
  const seen: string[] = [];
  const client = await serve((request, response) => {
    seen.push(`${request.method} ${request.url}`);
    response.writeHead(204).end();
  });
  await client.deleteVolume('vol-0123456789ab');
  await client.deleteAttachment('att-0123456789ab', { force: true });
  await client.deleteAttachment('att-0123456789ab', { force: false });
  assert.deepEqual(seen, [
    'DELETE /v1/volumes/vol-0123456789ab',
    'DELETE /v1/attachments/att-0123456789ab?force=true',
    'DELETE /v1/attachments/att-0123456789ab',
  ]);
});

test('an address that is no URL is a usage error', () => {
  for (const base of ['localhost:7400', 'ftp://localhost', ''])
    assert.throws(() => new RestClient(base), failsWith('BW_INVALID_ARGUMENT', ExitCode.USAGE));
});
