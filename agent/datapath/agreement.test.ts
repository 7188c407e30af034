import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Agreement, AgreementWriter, createAgreement } from './agreement.ts';

function setUp(queueCount: number) {
  const shared = createAgreement();
  return { seen: new Agreement(shared), writer: new AgreementWriter(shared, queueCount) };
}

test('a replica has joined when it is ready in every queue', () => {
  const { seen, writer } = setUp(3);
  writer.goBy({ epoch: 4, inSync: 0b01, rebuilding: 0b10, rejoined: 0b11, hasLoss: false });
  assert.deepEqual([seen.readable, seen.joined], [0b01, 0]);
  assert.equal(writer.ready(2, 1, 4), false);
  assert.equal(writer.ready(2, 1, 4), false);
  assert.equal(writer.ready(0, 1, 4), false);
  // Another one begins, which changes nothing for the first.
  writer.goBy({ epoch: 5, inSync: 0b01, rebuilding: 0b110, rejoined: 0b100, hasLoss: false });
  assert.equal(seen.joined, 0);
  assert.equal(writer.ready(1, 1, 5), true);
  assert.equal(seen.joined, 0b10);
  writer.goBy({ epoch: 6, inSync: 0b11, rebuilding: 0b100, rejoined: 0, hasLoss: false });
  assert.deepEqual([seen.readable, seen.joined], [0b11, 0]);
});

test('a replica that has left joins anew, whatever queues say that have not heard of it', () => {
  const { seen, writer } = setUp(2);
  writer.goBy({ epoch: 4, inSync: 0b01, rebuilding: 0b10, rejoined: 0b11, hasLoss: false });
  writer.ready(0, 1, 4);
  writer.ready(1, 1, 4);
  assert.equal(seen.joined, 0b10);
  writer.goBy({ epoch: 6, inSync: 0b01, rebuilding: 0b10, rejoined: 0b10, hasLoss: false });
  assert.equal(seen.joined, 0);
  writer.ready(0, 1, 6);
  assert.equal(writer.ready(1, 1, 4), false);
  assert.equal(seen.joined, 0);
  assert.equal(writer.ready(1, 1, 6), true);
  writer.goBy({ epoch: 7, inSync: 0b01, rebuilding: 0, rejoined: 0, hasLoss: false });
  assert.equal(writer.ready(1, 1, 7), false);
});
