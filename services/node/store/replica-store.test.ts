/** The store on a real directory: what survives, what is refused, what is damage. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { temporaryDirectory } from '../testing/node-process.ts';
import { type Descriptor, readDescriptor, writeDescriptor } from './descriptor.ts';
import { keepCapabilityKey, keepNodeId, readCapabilityKey } from './node-id.ts';
import { writeRegionPages } from './region-file.ts';
import { REGION_INTENT, RegionTable } from './region-table.ts';
import { ReplicaStore } from './replica-store.ts';

const MIB = 2 ** 20;
const log = createLogger('test');
log.level = 'silent';

function open(
  t: TestContext,
  directory: string,
  capacityBytes: number | null = 100 * MIB,
  bootId = 'boot-1',
): ReplicaStore {
  const store = new ReplicaStore({ directory, capacityBytes, bootId, log });
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
  const installed = { ...first.installed('vol-1'), generation: 4, epoch: 5 };
  first.install('vol-1', installed);
  first.close();
  const second = open(t, directory);
  assert.deepEqual(second.get('vol-1').descriptor, {
    ...{ version: 3, ...VOL, ...installed, snapshot: null, bootId: 'boot-1' },
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

test('a replica that was open when the machine went down with intents is unclean, and only then', (t) => {
  const directory = temporaryDirectory(t);
  const intents = (volumeId: string): void => {
    const path = join(directory, 'replicas', volumeId, 'regions');
    const table = new RegionTable(VOL.sizeBytes, null);
    table.set(1, 2, REGION_INTENT);
    writeRegionPages(path, table, [0]);
  };
  const uncleanIn = (bootId: string): (number | null)[] => {
    const store = open(t, directory, null, bootId);
    const found = ['idle', 'written', 'sealed'].map((id) => store.installed(id).uncleanEpoch);
    store.close();
    return found;
  };
  const first = open(t, directory);
  for (const volumeId of ['idle', 'written', 'sealed']) first.create({ ...VOL, volumeId });
  intents('written');
  intents('sealed');
  first.seal((id) => id !== 'sealed');
  first.close();
  assert.deepEqual(uncleanIn('boot-1'), [null, null, null], 'a process that ends loses nothing');
  const second = open(t, directory);
  second.seal((id) => id !== 'sealed');
  second.close();
  assert.deepEqual(uncleanIn('boot-2'), [null, 2, null]);
  assert.deepEqual(uncleanIn('boot-3'), [null, 2, 2], 'it was open, and stays what it was');
});

test('a descriptor of version 2 is read as one in sync', (t) => {
  const directory = temporaryDirectory(t);
  writeFileSync(join(directory, 'descriptor.json'), JSON.stringify({ version: 2, ...VOL, snapshot: null }));
  assert.deepEqual(readDescriptor(directory), {
    ...{
      version: 3,
      ...VOL,
      role: 'inSync',
      joinedEpoch: 2,
      uncleanEpoch: null,
      bootId: null,
      snapshot: null,
    },
  });
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
  writeFileSync(path('future'), text.replace('"version": 3', '"version": 4'));
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
  const descriptor: Descriptor = {
    ...{
      version: 3,
      ...VOL,
      role: 'inSync',
      joinedEpoch: 2,
      uncleanEpoch: null,
      bootId: null,
      snapshot: null,
    },
  };
  writeDescriptor(directory, descriptor);
  writeFileSync(join(directory, 'descriptor.json.new'), 'half of a descr');
  assert.equal(readDescriptor(directory).volumeId, 'vol-1');
  writeDescriptor(directory, { ...descriptor, epoch: 7 });
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
  assert.equal(readCapabilityKey(directory), null);
  const key = Buffer.alloc(32, 7);
  keepCapabilityKey(directory, key);
  assert.deepEqual(readCapabilityKey(directory), key);
  writeFileSync(join(directory, 'node.json'), '{');
  assert.throws(() => keepNodeId(directory, 'node-1'), code('BW_IO'));
});
