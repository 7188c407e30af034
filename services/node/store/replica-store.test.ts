/** The store on a real directory: what survives, what is refused, what is damage. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { temporaryDirectory } from '../testing/node-process.ts';
import { readDescriptor, writeDescriptor } from './descriptor.ts';
import { keepNodeId } from './node-id.ts';
import { ReplicaStore } from './replica-store.ts';

const MIB = 2 ** 20;
const log = createLogger('test');
log.level = 'silent';

function open(t: TestContext, directory: string, capacityBytes: number | null = 100 * MIB): ReplicaStore {
  const store = new ReplicaStore({ directory, capacityBytes, log });
  let closed = false;
  const close = store.close.bind(store);
  store.close = () => {
    if (!closed) close();
    closed = true;
  };
  t.after(() => store.close());
  return store;
}

function code(expected: string) {
  return (error: unknown): boolean => error instanceof BlockwireError && error.code === expected;
}

const VOL = { volumeId: 'vol-1', sizeBytes: MIB + 1, generation: 1, epoch: 2 };

test('a replica is thin, whole blocks, and found again', (t) => {
  const directory = temporaryDirectory(t);
  const first = open(t, directory);
  assert.ok(first.create(VOL) !== null);
  assert.equal(first.create(VOL), null, 'safe to repeat');
  const { size, blocks } = statSync(join(directory, 'replicas/vol-1/data'));
  assert.equal(size, MIB + 4096);
  assert.ok(blocks * 512 < 65536, 'nothing is allocated');
  assert.equal(first.freeBytes(), 99 * MIB - 1);
  first.installEpoch('vol-1', 4, 5);
  first.close();
  const second = open(t, directory);
  assert.deepEqual(second.get('vol-1').descriptor, {
    ...{ version: 2, ...VOL, generation: 4, epoch: 5, snapshot: null },
  });
  second.delete('vol-1');
  second.delete('vol-1');
  assert.throws(() => second.get('vol-1'), code('BW_REPLICA_NOT_FOUND'));
  assert.deepEqual(readdirSync(join(directory, 'replicas')), []);
  assert.equal(second.freeBytes(), 100 * MIB);
});

test('what cannot be created is refused and leaves nothing behind', (t) => {
  const directory = temporaryDirectory(t);
  const store = open(t, directory);
  store.create(VOL);
  assert.throws(() => store.create({ ...VOL, sizeBytes: MIB }), code('BW_REPLICA_EXISTS'));
  assert.throws(
    () => store.create({ ...VOL, volumeId: 'v2', sizeBytes: 100 * MIB }),
    code('BW_NOT_ENOUGH_SPACE'),
  );
  for (const volumeId of ['', '.', '..', '../x', 'a/b', '.new-x', 'a'.repeat(129), 'a\0b']) {
    assert.throws(() => store.create({ ...VOL, volumeId }), code('BW_INVALID_ARGUMENT'), volumeId);
  }
  for (const sizeBytes of [0, -1, 1.5, Number.NaN]) {
    assert.throws(() => store.create({ ...VOL, volumeId: 'v2', sizeBytes }), code('BW_INVALID_ARGUMENT'));
  }
  assert.deepEqual(readdirSync(join(directory, 'replicas')), ['vol-1']);
});

test('generations and epochs never go back', (t) => {
  const store = open(t, temporaryDirectory(t));
  store.create(VOL);
  assert.equal(store.installEpoch('vol-1', 1, 2), false);
  assert.equal(store.installEpoch('vol-1', 1, 3), false);
  assert.equal(store.installEpoch('vol-1', 2, 3), true);
  assert.throws(() => store.installEpoch('vol-1', 1, 9), code('BW_GENERATION_OLD'));
  assert.throws(() => store.installEpoch('vol-1', 9, 2), code('BW_EPOCH_OLD'));
  const { generation, epoch } = readDescriptor(store.get('vol-1').directory);
  assert.deepEqual([generation, epoch], [2, 3]);
});

test('any damage to one replica leaves it out, says why, and keeps its bytes; leftovers of a crash go', (t) => {
  const directory = temporaryDirectory(t);
  const first = open(t, directory);
  const names = ['torn', 'empty', 'foreign', 'future', 'missing', 'cut', 'well'];
  for (const volumeId of names) first.create({ ...VOL, volumeId });
  first.close();
  const path = (name: string): string => join(directory, 'replicas', name, 'descriptor.json');
  const text = readFileSync(path('torn'), 'utf8');
  writeFileSync(path('torn'), text.slice(0, text.length / 2));
  writeFileSync(path('empty'), '');
  writeFileSync(path('foreign'), readFileSync(path('well')));
  writeFileSync(path('future'), text.replace('"version": 2', '"version": 3'));
  writeFileSync(path('missing'), JSON.stringify({ version: 1, volumeId: 'missing' }));
  truncateSync(join(directory, 'replicas/cut/data'), MIB);
  mkdirSync(join(directory, 'replicas/.new-x'));
  mkdirSync(join(directory, 'replicas/.deleted-y'));
  const second = open(t, directory);
  assert.deepEqual([...second.replicas.keys()], ['well']);
  assert.deepEqual([...second.damaged.keys()].sort(), names.filter((name) => name !== 'well').sort());
  assert.throws(() => second.get('torn'), code('BW_REPLICA_DAMAGED'));
  assert.throws(() => second.create({ ...VOL, volumeId: 'torn' }), code('BW_REPLICA_DAMAGED'));
  assert.deepEqual(readdirSync(join(directory, 'replicas')).sort(), [...names].sort());
  second.delete('torn');
  assert.ok(second.create({ ...VOL, volumeId: 'torn' }) !== null);
});

test('a descriptor is replaced as a whole', (t) => {
  const directory = temporaryDirectory(t);
  writeDescriptor(directory, { version: 2, ...VOL, snapshot: null });
  writeFileSync(join(directory, 'descriptor.json.new'), 'half of a descr');
  assert.equal(readDescriptor(directory).volumeId, 'vol-1');
  writeDescriptor(directory, { version: 2, ...VOL, epoch: 7, snapshot: null });
  assert.equal(readDescriptor(directory).epoch, 7);
  assert.deepEqual(readdirSync(directory), ['descriptor.json']);
});

test('one store per directory, one node id for ever', (t) => {
  const directory = temporaryDirectory(t);
  const first = open(t, directory);
  assert.throws(() => open(t, directory), code('BW_CONFLICT'));
  first.close();
  open(t, directory);
  keepNodeId(directory, 'node-1');
  keepNodeId(directory, 'node-1');
  assert.throws(() => keepNodeId(directory, 'node-2'), code('BW_CONFLICT'));
  writeFileSync(join(directory, 'node.json'), '{');
  assert.throws(() => keepNodeId(directory, 'node-1'), code('BW_IO'));
});
