import assert from 'node:assert/strict';
import { test } from 'node:test';
import { admitSession, afterInstall, type Installed, type InstallOrder } from './admission.ts';

const INSTALLED: Installed = { generation: 3, epoch: 7, role: 'inSync', joinedEpoch: 5, uncleanEpoch: null };
const ORDER: InstallOrder = { generation: 3, epoch: 8, role: 'inSync', joinedEpoch: 5, lossEpoch: 0 };

test('generation and epoch never go back', () => {
  assert.throws(() => afterInstall(INSTALLED, { ...ORDER, generation: 2 }), { code: 'BW_GENERATION_OLD' });
  assert.throws(() => afterInstall(INSTALLED, { ...ORDER, epoch: 6 }), { code: 'BW_EPOCH_OLD' });
  assert.deepEqual(afterInstall(INSTALLED, ORDER), { ...INSTALLED, epoch: 8 });
  assert.deepEqual(afterInstall(INSTALLED, { ...ORDER, epoch: 7 }), INSTALLED, 'safe to repeat');
});

test('after a power failure a replica is in sync only if the loss is accepted, or is rebuilt', () => {
  const unclean = { ...INSTALLED, uncleanEpoch: 7 };
  assert.throws(() => afterInstall(unclean, ORDER), { code: 'BW_REPLICA_DAMAGED' });
  assert.throws(() => afterInstall(unclean, { ...ORDER, lossEpoch: 7 }), { code: 'BW_REPLICA_DAMAGED' });
  assert.equal(afterInstall(unclean, { ...ORDER, lossEpoch: 8 }).uncleanEpoch, null);
  assert.equal(afterInstall(unclean, { ...ORDER, role: 'rebuilding', joinedEpoch: 8 }).uncleanEpoch, null);
});

test('a session must name what is installed, neither less nor more', () => {
  const claim = { generation: 3, epoch: 7, kind: 'writer' } as const;
  admitSession(INSTALLED, claim);
  assert.throws(() => admitSession(INSTALLED, { ...claim, generation: 2 }), { code: 'BW_GENERATION_OLD' });
  assert.throws(() => admitSession(INSTALLED, { ...claim, epoch: 6 }), { code: 'BW_EPOCH_OLD' });
  assert.throws(() => admitSession(INSTALLED, { ...claim, generation: 4 }), { code: 'BW_CONFLICT' });
  assert.throws(() => admitSession(INSTALLED, { ...claim, epoch: 8 }), { code: 'BW_CONFLICT' });
  assert.throws(() => admitSession({ ...INSTALLED, uncleanEpoch: 7 }, claim), { code: 'BW_REPLICA_DAMAGED' });
});

test('peers copy from replicas in sync only; the writer writes to one being rebuilt', () => {
  const rebuilding = { ...INSTALLED, role: 'rebuilding' } as const;
  admitSession(rebuilding, { generation: 3, epoch: 7, kind: 'writer' });
  assert.throws(() => admitSession(rebuilding, { generation: 3, epoch: 7, kind: 'peer' }), {
    code: 'BW_CONFLICT',
  });
});
