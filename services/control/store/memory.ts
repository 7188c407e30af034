/** The metadata store in memory, for tests of what stands on it. */
import {
  assertChanges,
  assertKey,
  assertPrefix,
  type Change,
  type CommitResult,
  type MetadataStore,
  type StoredRecord,
} from './store.ts';

export class MemoryStore implements MetadataStore {
  /** Values are kept as text, so that no caller shares an object with the store. */
  readonly #records = new Map<string, { version: number; text: string }>();
  #revision = 0;

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

  async commit(changes: readonly Change[]): Promise<CommitResult> {
    assertChanges(changes);
    const conflicts = changes
      .filter(({ key, expectedVersion }) => (this.#records.get(key)?.version ?? 0) !== expectedVersion)
      .map(({ key }) => key);
    if (conflicts.length > 0) return { committed: false, conflicts };
    this.#revision += 1;
    for (const { key, value } of changes) {
      if (value === undefined) this.#records.delete(key);
      else this.#records.set(key, { version: this.#revision, text: JSON.stringify(value) });
    }
    return { committed: true, version: this.#revision };
  }

  async close(): Promise<void> {}
}
