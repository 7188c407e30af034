import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FreshMap } from './fresh.ts';

const MIB = 1024 * 1024;

test('nothing is fresh at first', () => {
  assert.deepEqual(new FreshMap().gaps(0, 4096), [{ offset: 0, length: 4096 }]);
});

test('gaps are what lies between writes, by sectors', () => {
  const fresh = new FreshMap();
  fresh.add(512, 512);
  fresh.add(2048, 1024);
  assert.deepEqual(fresh.gaps(0, 4096), [
    { offset: 0, length: 512 },
    { offset: 1024, length: 1024 },
    { offset: 3072, length: 1024 },
  ]);
  assert.deepEqual(fresh.gaps(512, 512), []);
});

test('part of a sector does not make it fresh', () => {
  const fresh = new FreshMap();
  fresh.add(100, 512);
  assert.deepEqual(fresh.gaps(0, 1024), [{ offset: 0, length: 1024 }]);
});

test('writes and gaps may cross regions', () => {
  const fresh = new FreshMap();
  fresh.add(MIB - 512, 1024);
  assert.deepEqual(fresh.gaps(MIB - 1024, 2048), [
    { offset: MIB - 1024, length: 512 },
    { offset: MIB + 512, length: 512 },
  ]);
});
