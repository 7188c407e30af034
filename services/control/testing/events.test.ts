/** Events over real HTTP: what is told, in what order, to whom, and what becomes of a connection that ends. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { type TestContext, test } from 'node:test';
import { Lifecycle } from '@blockwire/shared/lifecycle.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { type ControlPlane, startControl } from '../server.ts';
import { MemoryStore } from '../store/memory.ts';
import type { MetadataStore } from '../store/store.ts';
import { createVolume, startCluster } from './cluster.ts';
import { FakeNode } from './fakes.ts';

const bound = { timeout: 60_000 };

interface Event {
  readonly id: number;
  readonly at: string;
  readonly type: string;
  readonly [fact: string]: unknown;
}

/** One connection to /v1/events. */
class Reader {
  readonly #abort = new AbortController();
  #text = '';

  static async open(
    t: TestContext,
    rest: string,
    query = '',
    headers: Record<string, string> = {},
  ): Promise<Reader> {
    const reader = new Reader();
    t.after(() => reader.close());
    const response = await fetch(`${rest}/v1/events${query}`, { headers, signal: reader.#abort.signal });
    assert.deepEqual([response.status, response.headers.get('content-type')], [200, 'text/event-stream']);
    void reader.#read(response);
    return reader;
  }

  /** Everything so far. */
  get text(): string {
    return this.#text;
  }

  get events(): Event[] {
    return [...this.#text.matchAll(/^id: (\d+)\ndata: (.*)\n\n/gm)].map(([, id, data]) => {
      const event = JSON.parse(data!) as Event;
      assert.equal(event.id, Number(id));
      return event;
    });
  }

  get types(): string[] {
    return this.events.map(({ type }) => type);
  }

  close(): void {
    this.#abort.abort();
  }

  async #read(response: Response): Promise<void> {
    try {
      for await (const text of response.body!.pipeThrough(new TextDecoderStream())) this.#text += text;
    } catch {
      // It was closed.
    }
  }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadlineMs = performance.now() + 30_000;
  while (!(await condition())) {
    assert.ok(performance.now() < deadlineMs, String(condition));
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function startOn(t: TestContext, store: MetadataStore): Promise<ControlPlane> {
  const log = createLogger('test');
  log.level = 'silent';
  const lifecycle = new Lifecycle(log);
  t.after(() => lifecycle.stop());
  const timing = { eventPollMs: 10, slowReaderMs: 1_000 };
  return startControl({ host: '127.0.0.1', restPort: 0, grpcPort: 0, store, log, lifecycle, timing });
}

test('the life of a volume is told step by step, and to its own followers alone', bound, async (t) => {
  const cluster = await startCluster(t, { nodeCount: 2, agentCount: 1 });
  const everything = await Reader.open(t, cluster.control.rest, '?after=0');
  const { body: other } = await createVolume(cluster, { name: 'other' });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const own = await Reader.open(t, cluster.control.rest, `?after=0&volume=${volume.id}`);
  const attached = await cluster.request<{ id: string }>('POST', '/v1/attachments', { volume: volume.id });
  assert.equal(attached.status, 201);
  await cluster.request('PATCH', `/v1/volumes/${volume.id}`, { sizeBytes: 2 ** 21 });
  await cluster.request('DELETE', `/v1/attachments/${attached.body.id}`);
  await cluster.request('DELETE', `/v1/volumes/${volume.id}`);
  await cluster.request('POST', '/v1/nodes/node-1/drain');
  await until(() => everything.types.includes('node.draining'));
  await until(() => own.types.filter((type) => type === 'replica.deleted').length === 2);

  assert.deepEqual(own.types, [
    ...['volume.created', 'volume.available', 'volume.attaching', 'volume.attached', 'volume.resized'],
    ...['volume.detaching', 'volume.detached', 'volume.deleted', 'replica.deleted', 'replica.deleted'],
  ]);
  const [made] = own.events.filter(({ type }) => type === 'volume.attached');
  assert.deepEqual(made, {
    ...{ id: made!.id, at: made!.at, type: 'volume.attached' },
    ...{ volume: volume.id, agent: 'agent-1', attachment: attached.body.id },
  });
  assert.ok(Math.abs(Date.parse(made.at) - Date.now()) < 60_000);
  const ids = everything.events.map(({ id }) => id);
  assert.deepEqual(
    ids,
    ids.map((_, index) => index + 1),
  );
  assert.deepEqual(everything.types.slice(0, 3), ['node.online', 'node.online', 'agent.online']);
  assert.ok(everything.events.some((event) => event.volume === other.id));
});

test(
  'a replica that goes stale with an attach, and one that is promoted with a loss, are told',
  bound,
  async (t) => {
    const cluster = await startCluster(t, { nodeCount: 2, agentCount: 1 });
    const { body: volume } = await createVolume(cluster, { name: 'data' });
    const reader = await Reader.open(t, cluster.control.rest, `?volume=${volume.id}`);
    await cluster.nodes[1]!.close();
    await until(() => isOffline(cluster.control.rest, 'node-2'));
    const attached = await cluster.request<{ id: string }>('POST', '/v1/attachments', { volume: volume.id });
    assert.equal(attached.status, 201);
    await cluster.request('DELETE', `/v1/attachments/${attached.body.id}`);
    await until(() => reader.types.includes('volume.detached'));
    const [stale] = reader.events.filter(({ type }) => type === 'replica.stale');
    assert.deepEqual([stale?.node, stale?.reason], ['node-2', 'node node-2 is offline']);

    await cluster.nodes[0]!.close();
    await until(() => isOffline(cluster.control.rest, 'node-1'));
    await cluster.nodes[1]!.connect(cluster.control.grpc);
    const path = `/v1/volumes/${volume.id}/replicas/node-2/promote`;
    assert.equal((await cluster.request('POST', path, { acceptLoss: true })).status, 200);
    await until(() => reader.types.includes('replica.promoted'));
    const told = reader.events.slice(-2).map(({ type, node }) => `${type} ${String(node)}`);
    assert.deepEqual(told, ['replica.promoted node-2', 'replica.stale node-1']);
  },
);

test('who comes back with its last id misses nothing, also after a restart', bound, async (t) => {
  const cluster = await startCluster(t, { nodeCount: 2 });
  const first = await Reader.open(t, cluster.control.rest, '?after=0');
  await until(() => first.types.length === 2);
  first.close();
  await createVolume(cluster, { name: 'meanwhile' });
  await cluster.restart();
  const lastId = String(first.events.at(-1)!.id);
  const second = await Reader.open(t, cluster.control.rest, '?after=0', { 'last-event-id': lastId });
  await until(() => second.types.length >= 2);
  assert.deepEqual(second.types.slice(0, 2), ['volume.created', 'volume.available']);
});

test('the end of the control plane is told, and does not wait for who follows', bound, async (t) => {
  const cluster = await startCluster(t, { nodeCount: 0 });
  const reader = await Reader.open(t, cluster.control.rest);
  assert.equal(await cluster.stop(), 0);
  await until(() => reader.text.includes('event: end'));
  assert.match(reader.text, /event: end\ndata: \{"code":"BW_SHUTTING_DOWN"/);
});

test('both control planes of one store tell what either did', bound, async (t) => {
  const store = new MemoryStore();
  const [left, right] = [await startOn(t, store), await startOn(t, store)];
  const readers = [await Reader.open(t, left.rest), await Reader.open(t, right.rest)];
  const node = new FakeNode('node-1');
  t.after(() => node.close());
  await node.connect(left.grpc);
  const created = await fetch(`${left.rest}/v1/volumes`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ name: 'data', sizeBytes: 2 ** 20, replicas: 1 }),
  });
  assert.equal(created.status, 201);
  await fetch(`${right.rest}/v1/nodes/node-1/drain`, { method: 'POST' });
  for (const reader of readers) {
    await until(() => reader.types.length >= 4);
    assert.deepEqual(reader.types, ['node.online', 'volume.created', 'volume.available', 'node.draining']);
  }
  assert.deepEqual(readers[0]!.events, readers[1]!.events);
});

test('a reader that takes nothing is cut off, and nobody else waits for it', bound, async (t) => {
  const store = new MemoryStore();
  const reason = 'x'.repeat(1_000_000);
  for (let id = 1; id <= 24; id++) {
    const event = { at: '', type: 'replica.stale', volume: 'vol-1', node: 'node-1', epoch: id, reason };
    await store.commit([], [event]);
  }
  const { rest } = await startOn(t, store);
  const { hostname, port } = new URL(rest);
  const slow = connect(Number(port), hostname).pause();
  t.after(() => slow.destroy());
  slow.on('error', () => {});
  await once(slow, 'connect');
  slow.write(`GET /v1/events?after=0 HTTP/1.1\r\nHost: ${hostname}\r\n\r\n`);
  const reader = await Reader.open(t, rest, '?after=0');
  await until(() => reader.text.length > 24_000_000);

  // It gets what was on its way, and then the end.
  await new Promise((resolve) => setTimeout(resolve, 4_000));
  let received = 0;
  slow.on('data', (chunk) => {
    received += chunk.length;
  });
  await once(slow.resume(), 'close');
  assert.ok(received > 0 && received < 24_000_000, `${received} bytes`);
});

test('what is no id or no parameter is refused', bound, async (t) => {
  const cluster = await startCluster(t, { nodeCount: 0 });
  for (const query of ['?after=yesterday', '?volumes=vol-1', '?volume=']) {
    const answer = await cluster.request('GET', `/v1/events${query}`);
    assert.deepEqual([answer.status, answer.body.code], [400, 'BW_INVALID_ARGUMENT'], query);
  }
  const answer = await cluster.request('GET', '/v1/events', undefined, { 'last-event-id': '-1' });
  assert.deepEqual([answer.status, answer.body.code], [400, 'BW_INVALID_ARGUMENT']);
});

async function isOffline(rest: string, nodeId: string): Promise<boolean> {
  const nodes = (await (await fetch(`${rest}/v1/nodes`)).json()) as { id: string; state: string }[];
  return nodes.some(({ id, state }) => id === nodeId && state === 'offline');
}
