import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import { feed, harness, MIB, open, replies, request } from '../testing/worker-harness.ts';
import { READ_BYTES_MAX, ReadBudget } from './read-budget.ts';

test('connections that want more than a batch reads have their turns', () => {
  const budget = new ReadBudget(4);
  const served = new Map<number, number>();
  // As in the connection table: the last one touched comes first.
  let touched = [0, 1, 2];
  for (let batch = 0; batch < 30; batch++) {
    for (let connection = touched.pop(); connection !== undefined; connection = touched.pop()) {
      while (budget.allows(connection)) {
        budget.take(READ_BYTES_MAX);
        served.set(connection, (served.get(connection) ?? 0) + 1);
      }
    }
    assert.ok(budget.someoneWaits);
    touched = [];
    budget.renew((connection) => touched.push(connection));
    assert.ok(!budget.someoneWaits);
    assert.deepEqual([...touched].sort(), [0, 1, 2]);
  }
  assert.deepEqual(
    [0, 1, 2].map((connection) => served.get(connection)),
    [10, 10, 10],
  );
});

test('large reads are begun a batch at a time, and no batch waits for the disk', () => {
  const h = harness(1, { sizeBytes: 4 * MIB, poolBytes: 64 * MIB });
  const socket = open(h);
  const lengths = new Map<number, number>();
  for (let cookie = 1; cookie <= 8; cookie++) {
    feed(socket, request(nbd.NBD_CMD_READ, cookie, (cookie - 1) * (MIB / 2), MIB / 2));
    lengths.set(cookie, MIB / 2);
  }
  let batches = 0;
  for (let begun = 0; begun < 8; begun = h.stats[Stat.reads]!) {
    // While a connection waits for the next batch, that is at once: a disk soon has all of them.
    if (h.server.waitUsMax === 0) batches++;
    else assert.ok(h.io.step());
    h.server.onBatchEnd();
    assert.ok(h.stats[Stat.reads]! - begun <= READ_BYTES_MAX / (MIB / 2));
  }
  assert.ok(batches > 0);
  h.settle();
  const answered = replies(socket, lengths);
  assert.equal(answered.size, 8);
  for (const { error } of answered.values()) assert.equal(error, nbd.NBD_OK);
});
