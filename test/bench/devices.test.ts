import assert from 'node:assert/strict';
import { it } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { parseDevice } from './devices.ts';

it('reads what a device name says', () => {
  const plain = { connections: 1, queues: 1, smallKib: null, busyPollUs: null, mirrors: 1 };
  assert.deepEqual(parseDevice('fused'), { name: 'fused', kind: 'fused', ...plain });
  assert.deepEqual(parseDevice('fused-zc-q2-x3'), {
    name: 'fused-zc-q2-x3',
    kind: 'fused-zc',
    ...plain,
    queues: 2,
    mirrors: 3,
  });
  assert.deepEqual(parseDevice('fused-s64-p0'), {
    name: 'fused-s64-p0',
    kind: 'fused',
    ...plain,
    smallKib: 64,
    busyPollUs: 0,
  });
  assert.deepEqual(parseDevice('nbd-client-c4-x2'), {
    name: 'nbd-client-c4-x2',
    kind: 'nbd-client',
    ...plain,
    connections: 4,
    mirrors: 2,
  });
});

it('refuses what it does not know', () => {
  for (const name of ['', 'fuse', 'fused-z', 'copy-x', 'nbd', 'fused zc'])
    assert.throws(() => parseDevice(name), BlockwireError, name);
});
