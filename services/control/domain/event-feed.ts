/**
 * Events for those who follow them, also those of other control planes on the same store: read from there, page by page, as fast
 * as the follower takes them. Nothing is kept here for one that is slow.
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Compile } from 'typebox/compile';
import type { MetadataStore } from '../store/store.ts';
import type { Context } from './context.ts';
import { RecordedEvent } from './events.ts';

/** Events read at once. */
const PAGE_MAX = 100;

export type FeedItem =
  | { readonly kind: 'event'; readonly id: number; readonly event: RecordedEvent }
  /** The next ones asked for are not there: too old, or of another store. Goes on after `id`. */
  | { readonly kind: 'gap'; readonly id: number }
  /** Nothing up to this id is left to tell now. */
  | { readonly kind: 'idle'; readonly id: number };

export interface FollowOptions {
  /** Null: what happens from now on. */
  readonly afterId: number | null;
  /** Only what concerns this volume. */
  readonly volumeId: string | null;
  readonly signal: AbortSignal;
}

export interface FeedContext extends Pick<Context, 'events'> {
  readonly store: Pick<MetadataStore, 'events'>;
  readonly timing: Pick<Context['timing'], 'eventPollMs'>;
}

const validator = Compile(RecordedEvent);

/** Ends when the signal is aborted. Throws what the store throws, and BW_INTERNAL for what is no event. */
export async function* followEvents(
  context: FeedContext,
  { afterId, volumeId, signal }: FollowOptions,
): AsyncGenerator<FeedItem, void> {
  const { store, events, timing } = context;
  const bell = new Bell();
  const ring = (): void => bell.ring();
  events.on('change', ring);
  signal.addEventListener('abort', ring);
  try {
    let id = afterId ?? (await store.events(0, 0)).lastId;
    while (!signal.aborted) {
      const page = await store.events(id, PAGE_MAX);
      if (id > page.lastId || id + 1 < page.firstId) {
        id = id > page.lastId ? page.lastId : page.firstId - 1;
        yield { kind: 'gap', id };
        continue;
      }
      for (const { id: eventId, value } of page.events) {
        id = eventId;
        const event = checked(value);
        if (volumeId === null || ('volume' in event && event.volume === volumeId)) {
          yield { kind: 'event', id, event };
        }
      }
      if (page.events.length === PAGE_MAX) continue;
      yield { kind: 'idle', id };
      // Another control plane rings no bell here.
      await bell.rung(timing.eventPollMs);
    }
  } finally {
    events.off('change', ring);
    signal.removeEventListener('abort', ring);
  }
}

function checked(value: unknown): RecordedEvent {
  if (validator.Check(value)) return value;
  throw new BlockwireError('BW_INTERNAL', 'a stored event is not of its schema');
}

/** Remembers a ring that comes while nobody waits. */
class Bell {
  #isRung = false;
  #wake: (() => void) | null = null;

  ring(): void {
    this.#isRung = true;
    this.#wake?.();
  }

  /** Resolves when it has been rung since the last time, or after so long. */
  async rung(msMax: number): Promise<void> {
    if (!this.#isRung) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = setTimeout(resolve, msMax);
      await promise;
      clearTimeout(timer);
      this.#wake = null;
    }
    this.#isRung = false;
  }
}
