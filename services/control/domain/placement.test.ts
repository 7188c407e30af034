import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type PlacementCandidate, placeReplicas } from './placement.ts';

function node(nodeId: string, freeBytes: number, zone = ''): PlacementCandidate {
  return { nodeId, zone, freeBytes };
}

test('the nodes with most free bytes are taken, each once', () => {
  const candidates = [node('a', 10), node('b', 30), node('c', 20)];
  assert.deepEqual(placeReplicas({ candidates, replicaCount: 2, sizeBytes: 5 }), ['b', 'c']);
  assert.deepEqual(placeReplicas({ candidates, replicaCount: 3, sizeBytes: 10 }), ['b', 'c', 'a']);
});

test('equal nodes are taken in the order of their ids', () => {
  const candidates = [node('c', 10), node('a', 10), node('b', 10)];
  assert.deepEqual(placeReplicas({ candidates, replicaCount: 2, sizeBytes: 10 }), ['a', 'b']);
});

test('zones are spread before free bytes count, and filled evenly after', () => {
  const candidates = [node('a1', 90, 'a'), node('a2', 80, 'a'), node('a3', 70, 'a'), node('b1', 10, 'b')];
  assert.deepEqual(placeReplicas({ candidates, replicaCount: 2, sizeBytes: 5 }), ['a1', 'b1']);
  assert.deepEqual(placeReplicas({ candidates, replicaCount: 3, sizeBytes: 5 }), ['a1', 'b1', 'a2']);
  assert.deepEqual(placeReplicas({ candidates, replicaCount: 2, sizeBytes: 11 }), ['a1', 'a2']);
});

test('too few nodes and too little space are different errors', () => {
  const candidates = [node('a', 10), node('b', 4)];
  assert.throws(() => placeReplicas({ candidates, replicaCount: 3, sizeBytes: 1 }), {
    code: 'BW_NOT_ENOUGH_NODES',
  });
  assert.throws(() => placeReplicas({ candidates, replicaCount: 2, sizeBytes: 5 }), {
    code: 'BW_NOT_ENOUGH_SPACE',
    message: /a 10, b 4/,
  });
  assert.throws(() => placeReplicas({ candidates: [], replicaCount: 1, sizeBytes: 1 }), {
    code: 'BW_NOT_ENOUGH_NODES',
  });
});
