import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { MemoryStore } from '../store/memory.ts';
import { CHANGES_MAX, EVENTS_KEPT } from '../store/store.ts';
import { type FeedItem, followEvents } from './event-feed.ts';
import { type ControlEvent, ControlEvents, EventStore } from './events.ts';

const bound = { timeout: 20_000 };
const online = (node: string): ControlEvent => ({ type: 'node.online', node });

class Follower {
  readonly store = new MemoryStore();
  readonly events = new ControlEvents();
  readonly here: EventStore;
  readonly reader = new AbortController();
  readonly #pollMs: number;

  /** @param pollMs of a process that looks for what others have done; by default it never comes to that */
  constructor(t: TestContext, pollMs = 3_600_000) {
    const log = { error() {} } as unknown as ConstructorParameters<typeof EventStore>[1]['log'];
    this.here = new EventStore(this.store, { events: this.events, log, now: () => 0 });
    this.#pollMs = pollMs;
    t.after(() => this.reader.abort());
  }

  follow(afterId: number | null, volumeId: string | null = null): AsyncGenerator<FeedItem, void> {
    const { store, events } = this;
    const timing = { eventPollMs: this.#pollMs };
    return followEvents({ store, events, timing }, { afterId, volumeId, signal: this.reader.signal });
  }
}

/** Short for an item: `1 node.online`, `gap 7`, `idle 7`. */
function short(item: FeedItem): string {
  return item.kind === 'event' ? `${item.id} ${item.event.type}` : `${item.kind} ${item.id}`;
}

async function next(items: AsyncGenerator<FeedItem, void>, count: number): Promise<string[]> {
  const found: string[] = [];
  while (found.length < count) {
    const { value } = await items.next();
    if (!value) break;
    found.push(short(value));
  }
  return found;
}

test('events of a commit come at once, in order, and a volume hears only of itself', bound, async (t) => {
  const follower = new Follower(t);
  const all = follower.follow(0);
  const one = follower.follow(null, 'vol-1');
  assert.deepEqual([await next(all, 1), await next(one, 1)], [['idle 0'], ['idle 0']]);
  const commit = follower.here.commit(
    [],
    [online('n1'), { type: 'volume.created', volume: 'vol-1' }, { type: 'volume.created', volume: 'vol-2' }],
  );
  assert.deepEqual(await next(all, 3), ['1 node.online', '2 volume.created', '3 volume.created']);
  assert.deepEqual(await next(one, 2), ['2 volume.created', 'idle 3']);
  await commit;
});

test('what another control plane did on the same store is noticed', bound, async (t) => {
  const follower = new Follower(t, 5);
  const items = follower.follow(null);
  assert.deepEqual(await next(items, 1), ['idle 0']);
  await follower.store.commit([], [{ at: '', ...online('n9') }]);
  let seen = await next(items, 1);
  while (seen[0]!.startsWith('idle 0')) seen = await next(items, 1);
  assert.deepEqual(seen, ['1 node.online']);
});

test(
  'who comes back gets what it missed, page by page, and is told when that is not kept any more',
  bound,
  async (t) => {
    const follower = new Follower(t);
    const batch = Array.from({ length: CHANGES_MAX }, () => online('n1'));
    const rounds = Math.ceil((EVENTS_KEPT + 1) / CHANGES_MAX);
    for (let round = 0; round < rounds; round++) await follower.here.commit([], batch);
    const lastId = rounds * CHANGES_MAX;
    const missed = await next(follower.follow(lastId - 250), 251);
    assert.deepEqual(
      [missed[0], missed[249], missed[250]],
      [`${lastId - 249} node.online`, `${lastId} node.online`, `idle ${lastId}`],
    );
    const firstId = lastId - EVENTS_KEPT + 1;
    assert.deepEqual(await next(follower.follow(3), 2), [`gap ${firstId - 1}`, `${firstId} node.online`]);
    // A number of another store.
    assert.deepEqual(await next(follower.follow(lastId + 7), 2), [`gap ${lastId}`, `idle ${lastId}`]);
  },
);

test('it ends with its reader', bound, async (t) => {
  const follower = new Follower(t);
  const items = follower.follow(null);
  assert.deepEqual(await next(items, 1), ['idle 0']);
  const ended = items.next();
  follower.reader.abort();
  assert.equal((await ended).done, true);
  assert.equal(follower.events.listenerCount('change'), 0);
});
