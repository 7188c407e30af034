/**
 * The metadata store: versioned JSON records under text keys, changed only by compare-and-swap, and a log of the last events.
 *
 * Invariants, on which the state machines rely:
 * 1. `commit` changes all of its records or none, and compares every version before it changes any.
 * 2. Every commit takes a new revision of the store, and every record it writes has that revision as its
 *    version. A version is never given twice, not even to a record that was deleted and made again.
 * 3. A commit that was answered survives a crash of the process and of the machine (not in memory.ts).
 * 4. Events are in the log if and only if their commit is, numbered from 1 on in the order of commits, without gaps. The oldest
 *    go when there are more than `EVENTS_KEPT`.
 *
 * Nothing here asks more of a store than one script over listed keys can do, so that several control planes
 * can share a remote one.
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';

export type JsonValue =
  | string
  | number
  | boolean
  | null
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue };

export interface StoredRecord {
  readonly key: string;
  /** Always > 0. */
  readonly version: number;
  readonly value: JsonValue;
}

export interface Change {
  readonly key: string;
  /** The version the record must have now; 0 when it must not exist. */
  readonly expectedVersion: number;
  /** The record's new value; undefined deletes it. A deletion of what does not exist is a plain check. */
  readonly value: JsonValue | undefined;
}

export interface StoredEvent {
  readonly id: number;
  readonly value: JsonValue;
}

export interface EventPage {
  /** Oldest first. */
  readonly events: readonly StoredEvent[];
  /** Of the oldest event that is kept; `lastId + 1` when none is. */
  readonly firstId: number;
  /** Of the newest; 0 when there was none yet. */
  readonly lastId: number;
}

export type CommitResult =
  | { readonly committed: true; readonly version: number }
  | { readonly committed: false; readonly conflicts: readonly string[] };

export interface MetadataStore {
  get(key: string): Promise<StoredRecord | null>;
  /** Every record whose key starts with `prefix`, which ends in `/`; ordered by key. */
  list(prefix: string): Promise<StoredRecord[]>;
  /**
   * All changes and events or, when a version differs, none. At most `CHANGES_MAX` of either, not none of both, and each change of
   * another key.
   */
  commit(changes: readonly Change[], events?: readonly JsonValue[]): Promise<CommitResult>;
  /** Events with higher ids than `afterId`, at most `countMax`. */
  events(afterId: number, countMax: number): Promise<EventPage>;
  close(): Promise<void>;
}

/** Bounds one script or transaction; the largest real commit has two changes a replica and a few more. */
export const CHANGES_MAX = 64;

/** Hours of a large cluster's worst day, some megabytes. */
export const EVENTS_KEPT = 10_000;

const KEY_PATTERN = /^[a-z]+(\/[A-Za-z0-9._-]{1,128})+$/;
const PREFIX_PATTERN = /^[a-z]+\/([A-Za-z0-9._-]{1,128}\/)*$/;

/** False for what can be no record's key, such as one built from a user's made-up id. */
export function isKey(text: string): boolean {
  return KEY_PATTERN.test(text);
}

/** Throws BW_INTERNAL: a key outside the alphabet is a mistake of the caller, never of a user. */
export function assertKey(key: string): void {
  if (!isKey(key)) throw new BlockwireError('BW_INTERNAL', `not a store key: ${key}`);
}

export function assertPrefix(prefix: string): void {
  if (!PREFIX_PATTERN.test(prefix)) throw new BlockwireError('BW_INTERNAL', `not a store prefix: ${prefix}`);
}

export function assertChanges(changes: readonly Change[], events: readonly JsonValue[]): void {
  const counts = [changes.length, events.length];
  if (Math.max(...counts) === 0 || Math.max(...counts) > CHANGES_MAX) {
    throw new BlockwireError(
      'BW_INTERNAL',
      `a commit takes 1 to ${CHANGES_MAX} changes or events, not ${counts.join(' and ')}`,
    );
  }
  const keys = new Set<string>();
  for (const { key } of changes) {
    assertKey(key);
    if (keys.has(key)) throw new BlockwireError('BW_INTERNAL', `a commit changes ${key} twice`);
    keys.add(key);
  }
}
