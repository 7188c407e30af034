import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { FeedItem } from '../domain/event-feed.ts';
import { type EventStreamOptions, writeEvents } from './event-stream.ts';

const bound = { timeout: 20_000 };
const EVENT = { at: '2030-01-01T00:00:00.000Z', type: 'node.online', node: 'node-1' } as const;

function options(changes: Partial<EventStreamOptions> = {}): EventStreamOptions {
  return {
    heartbeatMs: 0,
    slowMsMax: 10_000,
    now: () => 0,
    signal: new AbortController().signal,
    ...changes,
  };
}

async function* sequence(...items: readonly FeedItem[]): AsyncGenerator<FeedItem, void> {
  yield* items;
}

test('events, gaps and signs of life are frames with their ids', bound, async () => {
  const out = new PassThrough();
  const items = sequence(
    { kind: 'gap', id: 6 },
    { kind: 'event', id: 7, event: EVENT },
    { kind: 'idle', id: 9 },
  );
  const [written] = await Promise.all([text(out), writeEvents(items, out, options())]);
  assert.equal(
    written,
    'id: 6\nevent: gap\ndata: {"after":6}\n\n' +
      `id: 7\ndata: {"id":7,"at":"${EVENT.at}","type":"node.online","node":"node-1"}\n\n` +
      ':\nid: 9\n\n',
  );
});

test('a sign of life is given only when nothing was sent for so long', bound, async () => {
  let nowMs = 0;
  async function* items(): AsyncGenerator<FeedItem, void> {
    for (nowMs = 0; nowMs <= 25; nowMs++) yield { kind: 'idle', id: nowMs };
  }
  const out = new PassThrough();
  const [written] = await Promise.all([
    text(out),
    writeEvents(items(), out, options({ heartbeatMs: 10, now: () => nowMs })),
  ]);
  assert.deepEqual(written.match(/(?<=id: )\d+/g), ['0', '10', '20']);
});

test('a reader that takes nothing gets no more than fits, is told why, and is cut off', bound, async () => {
  let taken = 0;
  async function* endless(): AsyncGenerator<FeedItem, void> {
    for (;;) yield { kind: 'event', id: ++taken, event: EVENT };
  }
  const out = new PassThrough({ highWaterMark: 1024 });
  await writeEvents(endless(), out, options({ slowMsMax: 20 }));
  assert.ok(taken < 40, `${taken} events for 1 KiB`);
  // It comes back in time, and reads the reason.
  assert.match(
    await text(out),
    /\n\nevent: end\ndata: \{"code":"BW_TIMEOUT","message":"this reader took nothing/,
  );
});

test('a reader that never comes back is let go', bound, async () => {
  async function* endless(): AsyncGenerator<FeedItem, void> {
    for (let id = 1; ; id++) yield { kind: 'event', id, event: EVENT };
  }
  const out = new PassThrough({ highWaterMark: 1024 });
  const closed = new Promise((resolve) => out.once('close', resolve));
  await writeEvents(endless(), out, options({ slowMsMax: 20 }));
  await closed;
});

test('a reader that goes on in time is waited for', bound, async () => {
  const out = new PassThrough({ highWaterMark: 16 });
  const items = sequence({ kind: 'event', id: 1, event: EVENT }, { kind: 'event', id: 2, event: EVENT });
  const written = writeEvents(items, out, options());
  const all = await text(out);
  await written;
  assert.deepEqual(all.match(/(?<=^id: )\d+/gm), ['1', '2']);
  assert.doesNotMatch(all, /event: end/);
});

test('the end of the control plane is told', bound, async () => {
  const reader = new AbortController();
  const out = new PassThrough();
  const all = text(out);
  reader.abort(new BlockwireError('BW_SHUTTING_DOWN', 'the control plane is stopping'));
  await writeEvents(sequence(), out, options({ signal: reader.signal }));
  assert.match(await all, /^event: end\ndata: \{"code":"BW_SHUTTING_DOWN"/);
});
