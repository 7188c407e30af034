import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Installed, InstallOrder } from './admission.ts';
import { endsCopies, ReplicaMembership } from './membership.ts';

function replica(): ReplicaMembership {
  return new ReplicaMembership({
    ...{ generation: 1, epoch: 1, role: 'inSync', joinedEpoch: 1, uncleanEpoch: null },
  });
}

function install(membership: ReplicaMembership, order: Partial<InstallOrder>): string {
  const { generation, epoch, role, joinedEpoch } = membership.installed;
  const installation = membership.prepare({ generation, epoch, role, joinedEpoch, lossEpoch: 0, ...order });
  membership.commit(installation);
  return installation.cut;
}

test('a new generation cuts older connections, a rebuild cuts all, an epoch none', () => {
  const membership = replica();
  assert.equal(install(membership, { epoch: 2 }), 'none');
  assert.equal(install(membership, { generation: 2 }), 'olderGenerations');
  assert.equal(install(membership, { epoch: 3, role: 'rebuilding', joinedEpoch: 3 }), 'all');
  assert.equal(install(membership, { epoch: 4 }), 'none', 'the same rebuild goes on');
  assert.equal(install(membership, { epoch: 5, joinedEpoch: 5 }), 'all', 'another one');
});

test('nothing changes before it is committed', () => {
  const membership = replica();
  membership.prepare({ generation: 2, epoch: 2, role: 'rebuilding', joinedEpoch: 2, lossEpoch: 0 });
  assert.equal(membership.installed.epoch, 1);
  assert.equal(membership.fresh, null);
});

test('what is fresh lasts as long as its rebuild', () => {
  const membership = replica();
  install(membership, { epoch: 2, role: 'rebuilding', joinedEpoch: 2 });
  membership.noteWrite(0, 4096);
  install(membership, { epoch: 3 });
  assert.deepEqual(membership.fresh?.gaps(0, 4096), []);
  install(membership, { epoch: 4, joinedEpoch: 4 });
  assert.deepEqual(membership.fresh?.gaps(0, 4096), [{ offset: 0, length: 4096 }]);
  install(membership, { epoch: 5, role: 'inSync' });
  assert.equal(membership.fresh, null);
});

test('a checkpoint covers what was stamped before its mark, of the installed epoch, in sync', () => {
  const membership = replica();
  let stamp = 10;
  const next = (): number => ++stamp;
  membership.mark({ number: 1, epoch: 1 }, next);
  membership.mark({ number: 1, epoch: 1 }, next);
  assert.equal(stamp, 11, 'only the first arrival of a mark counts');
  assert.equal(membership.covered({ number: 1, epoch: 1 }), 11);
  assert.equal(membership.covered({ number: 2, epoch: 1 }), null, 'a mark that never came');
  install(membership, { epoch: 2 });
  assert.equal(membership.covered({ number: 1, epoch: 1 }), null, 'of an older epoch');
  membership.mark({ number: 2, epoch: 1 }, next);
  assert.equal(membership.covered({ number: 2, epoch: 1 }), null);
  membership.mark({ number: 3, epoch: 2 }, next);
  assert.equal(membership.covered({ number: 3, epoch: 2 }), 12);
  install(membership, { epoch: 3, role: 'rebuilding', joinedEpoch: 3 });
  membership.mark({ number: 4, epoch: 3 }, next);
  assert.equal(
    membership.covered({ number: 4, epoch: 3 }),
    null,
    'a replica being rebuilt keeps its intents',
  );
});

test('copies end with their writer and with their rebuild, not with every epoch', () => {
  const before: Installed = {
    ...{ generation: 2, epoch: 5, role: 'rebuilding', joinedEpoch: 4, uncleanEpoch: null },
  };
  assert.equal(endsCopies(before, { ...before, epoch: 6 }), false);
  assert.equal(endsCopies(before, { ...before, epoch: 6, role: 'inSync' }), true);
  assert.equal(endsCopies(before, { ...before, epoch: 6, joinedEpoch: 6 }), true);
  assert.equal(endsCopies(before, { ...before, generation: 3 }), true);
});
