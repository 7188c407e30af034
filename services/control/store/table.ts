/** One kind of record in the metadata store: its keys, its schema, and the changes of a commit, typed. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Static, TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { type Change, isKey, type JsonValue, type MetadataStore, type StoredRecord } from './store.ts';

export interface Versioned<T> {
  readonly version: number;
  readonly value: T;
}

export class Table<Schema extends TSchema> {
  readonly #prefix: string;
  readonly #validator: { Check(value: unknown): boolean };

  /** @param name the first part of every key of the table. */
  constructor(name: string, schema: Schema) {
    this.#prefix = `${name}/`;
    this.#validator = Compile(schema);
  }

  key(...id: string[]): string {
    return this.#prefix + id.join('/');
  }

  /** Null when there is no such record. Throws BW_INTERNAL when it is not of the schema. */
  async get(store: MetadataStore, ...id: string[]): Promise<Versioned<Static<Schema>> | null> {
    const key = this.key(...id);
    const record = isKey(key) ? await store.get(key) : null;
    return record === null ? null : this.#checked(record);
  }

  /** Every record, or with `under` those whose id starts with these parts; ordered by id. */
  async list(store: MetadataStore, ...under: string[]): Promise<Versioned<Static<Schema>>[]> {
    const records = await store.list(under.map((part) => `${part}/`).reduce((a, b) => a + b, this.#prefix));
    return records.map((record) => this.#checked(record));
  }

  create(id: string | readonly string[], value: Static<Schema>): Change {
    return this.#change(id, 0, value);
  }

  replace(id: string | readonly string[], expectedVersion: number, value: Static<Schema>): Change {
    return this.#change(id, expectedVersion, value);
  }

  remove(id: string | readonly string[], expectedVersion: number): Change {
    return this.#change(id, expectedVersion, undefined);
  }

  #change(id: string | readonly string[], expectedVersion: number, value: unknown): Change {
    const key = typeof id === 'string' ? this.key(id) : this.key(...id);
    if (value !== undefined && !this.#validator.Check(value)) {
      throw new BlockwireError('BW_INTERNAL', `the record for ${key} is not of its schema`);
    }
    // A value of a schema is JSON by construction.
    return { key, expectedVersion, value: value as JsonValue | undefined };
  }

  #checked(record: StoredRecord): Versioned<Static<Schema>> {
    const value: unknown = record.value;
    if (!this.#validator.Check(value)) {
      throw new BlockwireError('BW_INTERNAL', `the stored record ${record.key} is not of its schema`);
    }
    return { version: record.version, value: value as Static<Schema> };
  }
}
