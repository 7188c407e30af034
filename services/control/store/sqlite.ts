/**
 * The metadata store in one SQLite file, for one control plane process: write-ahead log, every commit synced
 * to disk before it is answered, the file locked while it is open.
 */
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Type } from 'typebox';
import { Value } from 'typebox/value';
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
  type StoredEvent,
  type StoredRecord,
} from './store.ts';

/** "BWcp" in the file's header, so that another program's database is never taken for ours. */
const APPLICATION_ID = 0x42576370;

/** From each version of the schema to the next one; the first makes it. */
const STEPS = [
  `
  CREATE TABLE record (key TEXT PRIMARY KEY, version INTEGER NOT NULL, value TEXT NOT NULL) WITHOUT ROWID, STRICT;
  CREATE TABLE revision (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL) STRICT;
  INSERT INTO revision VALUES (1, 0);
  PRAGMA application_id = ${APPLICATION_ID};
  `,
  'CREATE TABLE event (id INTEGER PRIMARY KEY, value TEXT NOT NULL) STRICT;',
];
const SCHEMA_VERSION = STEPS.length;

const Row = Type.Object({ key: Type.String(), version: Type.Integer(), value: Type.String() });
const EventRow = Type.Object({ id: Type.Integer(), value: Type.String() });
const SQLITE_BUSY = 5;

/**
 * Opens the file, creating it when it does not exist; one of an earlier schema is brought up to date.
 * Throws BW_CONFLICT when another process has it open, BW_UNSUPPORTED_HOST when its schema is another
 * version's, BW_IO when it is not a metadata store or cannot be opened.
 */
export function openSqliteStore(path: string): MetadataStore {
  let database: DatabaseSync | null = null;
  try {
    database = new DatabaseSync(path);
    database.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;');
    // The first write transaction takes the lock, which exclusive mode then keeps.
    database.exec('BEGIN IMMEDIATE');
    checkSchema(database, path);
    database.exec('COMMIT');
    return new SqliteStore(database);
  } catch (error) {
    database?.close();
    if (error instanceof BlockwireError) throw error;
    if (error instanceof Error && 'errcode' in error && error.errcode === SQLITE_BUSY) {
      throw new BlockwireError(
        'BW_CONFLICT',
        `${path} is in use by another control plane; stop that one first`,
        {
          cause: error,
        },
      );
    }
    throw new BlockwireError('BW_IO', `${path} cannot be opened as a metadata store: ${String(error)}`, {
      cause: error,
    });
  }
}

function pragma(database: DatabaseSync, name: string): number {
  return Number(database.prepare(`PRAGMA ${name}`).get()?.[name]);
}

/** The present schema, made or brought up to date in the transaction that is open. */
function checkSchema(database: DatabaseSync, path: string): void {
  const applicationId = pragma(database, 'application_id');
  const version = pragma(database, 'user_version');
  const tables = Number(database.prepare('SELECT count(*) AS count FROM sqlite_schema').get()?.count);
  const isNew = applicationId === 0 && version === 0 && tables === 0;
  if (!isNew && applicationId !== APPLICATION_ID) {
    throw new BlockwireError('BW_IO', `${path} is a database, but not a metadata store of a control plane`);
  }
  if (version > SCHEMA_VERSION) {
    throw new BlockwireError(
      'BW_UNSUPPORTED_HOST',
      `${path} has schema version ${version}, this program knows ${SCHEMA_VERSION}; use the matching release`,
    );
  }
  for (const step of STEPS.slice(version)) database.exec(step);
  database.exec(`PRAGMA user_version = ${SCHEMA_VERSION}`);
}

class SqliteStore implements MetadataStore {
  readonly #database: DatabaseSync;
  readonly #select: StatementSync;
  readonly #selectRange: StatementSync;
  readonly #selectVersion: StatementSync;
  readonly #nextRevision: StatementSync;
  readonly #upsert: StatementSync;
  readonly #delete: StatementSync;
  readonly #insertEvent: StatementSync;
  readonly #trimEvents: StatementSync;
  readonly #selectEvents: StatementSync;
  readonly #selectEventIds: StatementSync;

  constructor(database: DatabaseSync) {
    this.#database = database;
    this.#select = database.prepare('SELECT key, version, value FROM record WHERE key = ?');
    this.#selectRange = database.prepare(
      'SELECT key, version, value FROM record WHERE key >= ? AND key < ? ORDER BY key',
    );
    this.#selectVersion = database.prepare('SELECT version FROM record WHERE key = ?');
    this.#nextRevision = database.prepare('UPDATE revision SET value = value + 1 RETURNING value');
    this.#upsert = database.prepare(
      'INSERT INTO record VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value',
    );
    this.#delete = database.prepare('DELETE FROM record WHERE key = ?');
    this.#insertEvent = database.prepare('INSERT INTO event (value) VALUES (?) RETURNING id');
    this.#trimEvents = database.prepare('DELETE FROM event WHERE id <= ?');
    this.#selectEvents = database.prepare('SELECT id, value FROM event WHERE id > ? ORDER BY id LIMIT ?');
    this.#selectEventIds = database.prepare(
      'SELECT (SELECT min(id) FROM event) AS firstId, (SELECT max(id) FROM event) AS lastId',
    );
  }

  async get(key: string): Promise<StoredRecord | null> {
    assertKey(key);
    const row = this.#select.get(key);
    return row === undefined ? null : toRecord(row);
  }

  async list(prefix: string): Promise<StoredRecord[]> {
    assertPrefix(prefix);
    // '0' follows '/' in ASCII: the range holds exactly the keys that start with the prefix.
    return this.#selectRange.all(prefix, `${prefix.slice(0, -1)}0`).map(toRecord);
  }

  async events(afterId: number, countMax: number): Promise<EventPage> {
    const ids = this.#selectEventIds.get();
    const lastId = Number(ids?.lastId ?? 0);
    const firstId = Number(ids?.firstId ?? lastId + 1);
    return { events: this.#selectEvents.all(afterId, countMax).map(toEvent), firstId, lastId };
  }

  async commit(changes: readonly Change[], events: readonly JsonValue[] = []): Promise<CommitResult> {
    assertChanges(changes, events);
    this.#database.exec('BEGIN IMMEDIATE');
    try {
      const conflicts = changes
        .filter(({ key, expectedVersion }) => this.#versionOf(key) !== expectedVersion)
        .map(({ key }) => key);
      if (conflicts.length > 0) {
        this.#database.exec('ROLLBACK');
        return { committed: false, conflicts };
      }
      const version = Number(this.#nextRevision.get()?.value);
      for (const { key, value } of changes) {
        if (value === undefined) this.#delete.run(key);
        else this.#upsert.run(key, version, JSON.stringify(value));
      }
      for (const event of events) {
        const id = Number(this.#insertEvent.get(JSON.stringify(event))?.id);
        this.#trimEvents.run(id - EVENTS_KEPT);
      }
      this.#database.exec('COMMIT');
      return { committed: true, version };
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw new BlockwireError('BW_IO', `the metadata store cannot be written: ${String(error)}`, {
        cause: error,
      });
    }
  }

  async close(): Promise<void> {
    if (this.#database.isOpen) this.#database.close();
  }

  #versionOf(key: string): number {
    return Number(this.#selectVersion.get(key)?.version ?? 0);
  }
}

function toEvent(row: unknown): StoredEvent {
  const { id, value } = Value.Parse(EventRow, row);
  return { id, value: JSON.parse(value) };
}

function toRecord(row: unknown): StoredRecord {
  const { key, version, value } = Value.Parse(Row, row);
  return { key, version, value: JSON.parse(value) };
}
