import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { MemoryStore } from '../store/memory.ts';
import { canonicalJson, Idempotency, type IdempotencyContext } from './idempotency.ts';

function makeContext(): IdempotencyContext & { time: number } {
  let idCount = 0;
  const context = {
    store: new MemoryStore(),
    time: 1_000_000,
    now: () => context.time,
    newId: (prefix: string) => `${prefix}-${++idCount}`,
  };
  return context;
}

const request = (
  run: (id: string) => Promise<string>,
  find: (id: string) => Promise<string | null> = async () => null,
) => ({
  key: 'key',
  content: { a: 1 },
  idPrefix: 'vol',
  run,
  find,
});

test('a request that its process did not live to answer is answered from what it made', async () => {
  const context = makeContext();
  const made: string[] = [];
  // The first process makes the resource and then never gets further.
  void new Idempotency(context).once(
    request((id) => {
      made.push(id);
      return new Promise(() => {});
    }),
  );
  while (made.length === 0) await new Promise(setImmediate);

  const find = async (id: string): Promise<string | null> => (made.includes(id) ? `found ${id}` : null);
  const next = new Idempotency(context);
  const answer = await next.once(request(() => assert.fail('it was made already'), find));
  assert.deepEqual(answer, { body: `found ${made[0]}`, replayed: true });
  assert.deepEqual(await next.once(request(() => assert.fail('it was answered already'))), answer);
});

test('what an interrupted request left nothing of is made again, under a new id', async () => {
  const context = makeContext();
  const ids: string[] = [];
  void new Idempotency(context).once(
    request((id) => {
      ids.push(id);
      return new Promise(() => {});
    }),
  );
  while (ids.length === 0) await new Promise(setImmediate);
  const answer = await new Idempotency(context).once(request(async (id) => `made ${id}`));
  assert.equal(answer.replayed, false);
  assert.notEqual(answer.body, `made ${ids[0]}`);
});

test('a failure is not kept; the next request runs', async () => {
  const idempotency = new Idempotency(makeContext());
  const failing = request(async () => {
    throw new BlockwireError('BW_NODE_OFFLINE', 'not now');
  });
  await assert.rejects(idempotency.once(failing), { code: 'BW_NODE_OFFLINE' });
  assert.deepEqual(await idempotency.once(request(async () => 'now')), { body: 'now', replayed: false });
});

test('answers are kept for a day', async () => {
  const context = makeContext();
  const idempotency = new Idempotency(context);
  await idempotency.once(request(async () => 'first'));
  context.time += 24 * 3600 * 1000;
  await idempotency.expire();
  assert.equal((await idempotency.once(request(async () => 'second'))).body, 'first');
  context.time += 1;
  await idempotency.expire();
  assert.equal((await idempotency.once(request(async () => 'second'))).body, 'second');
});

test('the order of keys makes no difference to a request, the order of a list does', () => {
  assert.equal(
    canonicalJson({ a: 1, b: { d: [1, 2], c: null } }),
    canonicalJson({ b: { c: null, d: [1, 2] }, a: 1 }),
  );
  assert.notEqual(canonicalJson([1, 2]), canonicalJson([2, 1]));
});
