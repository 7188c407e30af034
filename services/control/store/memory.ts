/** The metadata store in memory, for tests of what stands on it. */
import {
  assertChanges,
  assertKey,
  assertPrefix,
  type Change,
  type CommitResult,
  EVENTS_KEPT,
  type EventPage,
  type JsonValue,
  type MetadataStore,
  type StoredRecord,
} from './store.ts';

export class MemoryStore implements MetadataStore {
  /** Values are kept as text, so that no caller shares an object with the store. */
  readonly #records = new Map<string, { version: number; text: string }>();
  #revision = 0;
  /** The last ones, as text. */
  readonly #events: string[] = [];
  #lastEventId = 0;

  async get(key: string): Promise<StoredRecord | null> {
    assertKey(key);
    const found = this.#records.get(key);
    return found === undefined ? null : { key, version: found.version, value: JSON.parse(found.text) };
  }

  async list(prefix: string): Promise<StoredRecord[]> {
    assertPrefix(prefix);
    return [...this.#records]
      .filter(([key]) => key.startsWith(prefix))
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, { version, text }]) => ({ key, version, value: JSON.parse(text) }));
  }

  async commit(changes: readonly Change[], events: readonly JsonValue[] = []): Promise<CommitResult> {
    assertChanges(changes, events);
    const conflicts = changes
      .filter(({ key, expectedVersion }) => (this.#records.get(key)?.version ?? 0) !== expectedVersion)
      .map(({ key }) => key);
    if (conflicts.length > 0) return { committed: false, conflicts };
    this.#revision += 1;
    for (const { key, value } of changes) {
      if (value === undefined) this.#records.delete(key);
      else this.#records.set(key, { version: this.#revision, text: JSON.stringify(value) });
    }
    for (const event of events) this.#events.push(JSON.stringify(event));
    this.#lastEventId += events.length;
    if (this.#events.length > EVENTS_KEPT) this.#events.splice(0, this.#events.length - EVENTS_KEPT);
    return { committed: true, version: this.#revision };
  }

  async events(afterId: number, countMax: number): Promise<EventPage> {
    const lastId = this.#lastEventId;
    const firstId = lastId - this.#events.length + 1;
    const from = Math.max(0, afterId + 1 - firstId);
    const events = this.#events
      .slice(from, from + countMax)
      .map((text, index) => ({ id: firstId + from + index, value: JSON.parse(text) }));
    return { events, firstId, lastId };
  }

  async close(): Promise<void> {}
}
