/** The contract of a metadata store, run on every implementation. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, type TestContext, test } from 'node:test';
import { MemoryStore } from './memory.ts';
import { openSqliteStore } from './sqlite.ts';
import { CHANGES_MAX, EVENTS_KEPT, type MetadataStore } from './store.ts';

function scratchFile(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'bw-store-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return join(directory, 'control.db');
}

const implementations: Record<string, (t: TestContext) => MetadataStore> = {
  memory: () => new MemoryStore(),
  sqlite: (t) => openSqliteStore(scratchFile(t)),
};

for (const [name, open] of Object.entries(implementations)) {
  describe(`metadata store: ${name}`, () => {
    const contract = (title: string, body: (store: MetadataStore) => Promise<void>): void => {
      test(title, async (t) => {
        const store = open(t);
        t.after(() => store.close());
        await body(store);
      });
    };

    contract('a record is read back with the version of its commit', async (store) => {
      const result = await store.commit([{ key: 'a/1', expectedVersion: 0, value: { x: [1, 'two', null] } }]);
      assert.ok(result.committed);
      assert.deepEqual(await store.get('a/1'), {
        key: 'a/1',
        version: result.version,
        value: { x: [1, 'two', null] },
      });
      assert.equal(await store.get('a/2'), null);
    });

    contract('one wrong version refuses the whole commit and names the keys', async (store) => {
      const first = await store.commit([{ key: 'a/1', expectedVersion: 0, value: 1 }]);
      assert.ok(first.committed);
      assert.deepEqual(
        await store.commit([
          { key: 'a/2', expectedVersion: 0, value: 2 },
          { key: 'a/1', expectedVersion: first.version + 1, value: 2 },
          { key: 'a/3', expectedVersion: 9, value: 2 },
        ]),
        { committed: false, conflicts: ['a/1', 'a/3'] },
      );
      assert.equal(await store.get('a/2'), null);
      assert.equal((await store.get('a/1'))?.value, 1);
    });

    contract('versions rise with every commit and are not given again after a deletion', async (store) => {
      const seen: number[] = [];
      for (let round = 0; round < 3; round++) {
        const made = await store.commit([{ key: 'a/1', expectedVersion: 0, value: round }]);
        assert.ok(made.committed);
        seen.push(made.version);
        const deleted = await store.commit([{ key: 'a/1', expectedVersion: made.version, value: undefined }]);
        assert.ok(deleted.committed);
      }
      assert.deepEqual(
        seen,
        [...new Set(seen)].sort((a, b) => a - b),
      );
      assert.equal(seen.length, 3);
      const stale = await store.commit([{ key: 'a/1', expectedVersion: seen[0]!, value: 'late' }]);
      assert.ok(!stale.committed);
    });

    contract('a deletion of nothing only checks', async (store) => {
      assert.ok((await store.commit([{ key: 'a/1', expectedVersion: 0, value: undefined }])).committed);
      await store.commit([{ key: 'a/1', expectedVersion: 0, value: 1 }]);
      assert.ok(!(await store.commit([{ key: 'a/1', expectedVersion: 0, value: undefined }])).committed);
    });

    contract('of two concurrent changes of one version exactly one wins', async (store) => {
      const made = await store.commit([{ key: 'a/1', expectedVersion: 0, value: 'start' }]);
      assert.ok(made.committed);
      const results = await Promise.all(
        ['left', 'right'].map((value) =>
          store.commit([{ key: 'a/1', expectedVersion: made.version, value }]),
        ),
      );
      assert.equal(results.filter(({ committed }) => committed).length, 1);
    });

    contract('list gives exactly the prefix, in order', async (store) => {
      for (const key of ['a/b', 'a/a/x', 'a/a', 'ab/c', 'a/a0', 'b/a']) {
        await store.commit([{ key, expectedVersion: 0, value: key }]);
      }
      assert.deepEqual(
        (await store.list('a/')).map(({ key }) => key),
        ['a/a', 'a/a/x', 'a/a0', 'a/b'],
      );
      assert.deepEqual(
        (await store.list('a/a/')).map(({ value }) => value),
        ['a/a/x'],
      );
      assert.deepEqual(await store.list('c/'), []);
    });

    contract('the caller shares no object with the store', async (store) => {
      const value = { list: ['a'] };
      await store.commit([{ key: 'a/1', expectedVersion: 0, value }]);
      value.list.push('b');
      assert.deepEqual((await store.get('a/1'))?.value, { list: ['a'] });
    });

    contract('events are there if and only if their commit is, in the order of commits', async (store) => {
      assert.deepEqual(await store.events(0, 10), { events: [], firstId: 1, lastId: 0 });
      await store.commit([{ key: 'a/1', expectedVersion: 0, value: 1 }], ['first', { second: 2 }]);
      const refused = await store.commit([{ key: 'a/1', expectedVersion: 0, value: 2 }], ['never']);
      assert.equal(refused.committed, false);
      await store.commit([], ['third']);
      const events = [
        { id: 1, value: 'first' },
        { id: 2, value: { second: 2 } },
        { id: 3, value: 'third' },
      ];
      assert.deepEqual(await store.events(0, 10), { events, firstId: 1, lastId: 3 });
      assert.deepEqual((await store.events(1, 1)).events, [events[1]]);
      assert.deepEqual((await store.events(3, 10)).events, []);
    });

    contract('the last events are kept, and their ids go on', async (store) => {
      const batch = Array.from({ length: CHANGES_MAX }, () => 'event');
      for (let count = 0; count < EVENTS_KEPT + 1; count += CHANGES_MAX) await store.commit([], batch);
      const { firstId, lastId } = await store.events(0, 0);
      assert.equal(lastId, Math.ceil((EVENTS_KEPT + 1) / CHANGES_MAX) * CHANGES_MAX);
      assert.equal(lastId - firstId + 1, EVENTS_KEPT);
      assert.equal((await store.events(0, 1)).events[0]?.id, firstId);
    });

    contract('what breaks the rules of keys or bounds is refused', async (store) => {
      const change = { key: 'a/1', expectedVersion: 0, value: 1 };
      await assert.rejects(store.get('no slash'), { code: 'BW_INTERNAL' });
      await assert.rejects(store.list('a'), { code: 'BW_INTERNAL' });
      await assert.rejects(store.commit([]), { code: 'BW_INTERNAL' });
      await assert.rejects(store.commit([change, change]), { code: 'BW_INTERNAL' });
      const many = Array.from({ length: CHANGES_MAX + 1 }, (_, index) => ({ ...change, key: `a/${index}` }));
      await assert.rejects(store.commit(many), { code: 'BW_INTERNAL' });
      const events = many.map(({ key }) => key);
      await assert.rejects(store.commit([change], events), { code: 'BW_INTERNAL' });
      assert.deepEqual(await store.list('a/'), []);
    });
  });
}

describe('metadata store: the SQLite file', () => {
  test('records and the revision survive closing and opening', async (t) => {
    const path = scratchFile(t);
    let store = openSqliteStore(path);
    const first = await store.commit([{ key: 'a/1', expectedVersion: 0, value: 'kept' }]);
    await store.close();
    store = openSqliteStore(path);
    t.after(() => store.close());
    assert.equal((await store.get('a/1'))?.value, 'kept');
    const second = await store.commit([{ key: 'a/2', expectedVersion: 0, value: 1 }]);
    assert.ok(first.committed && second.committed && second.version > first.version);
  });

  test('a file that is open cannot be opened again', async (t) => {
    const path = scratchFile(t);
    const store = openSqliteStore(path);
    assert.throws(() => openSqliteStore(path), { code: 'BW_CONFLICT' });
    await store.close();
    await openSqliteStore(path).close();
  });

  test('a file without events, of the first schema, is brought up to date with all its records', async (t) => {
    const path = scratchFile(t);
    let store = openSqliteStore(path);
    await store.commit([{ key: 'a/1', expectedVersion: 0, value: 'kept' }]);
    await store.close();
    const database = new DatabaseSync(path);
    database.exec('DROP TABLE event; PRAGMA user_version = 1');
    database.close();
    store = openSqliteStore(path);
    assert.equal((await store.get('a/1'))?.value, 'kept');
    await store.commit([], ['first']);
    await store.close();
    store = openSqliteStore(path);
    t.after(() => store.close());
    assert.equal((await store.events(0, 10)).lastId, 1);
  });

  test('a file of another schema version or another program is refused and left alone', async (t) => {
    const path = scratchFile(t);
    await openSqliteStore(path).close();
    const database = new DatabaseSync(path);
    database.exec('PRAGMA user_version = 99');
    database.close();
    assert.throws(() => openSqliteStore(path), { code: 'BW_UNSUPPORTED_HOST', message: /version 99/ });

    const other = `${path}.other`;
    const foreign = new DatabaseSync(other);
    foreign.exec('CREATE TABLE mine (x)');
    foreign.close();
    assert.throws(() => openSqliteStore(other), { code: 'BW_IO' });
    assert.throws(() => openSqliteStore(join(path, 'missing', 'dir')), { code: 'BW_IO' });
  });
});
