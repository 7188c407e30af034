import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Membership, ReplicaState } from '@blockwire/proto/control/types.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { MembershipOrder } from './datapath/messages.ts';
import { DeviceMembership } from './membership.ts';
import { quietLog } from './testing/quiet-log.ts';

type States = Readonly<Record<string, 'IN_SYNC' | 'REBUILDING' | 'STALE'>>;

function membership(epoch: number, states: States, more: Partial<Membership> = {}): Membership {
  const replicas = Object.entries(states).map(([nodeId, state]) => ({
    nodeId,
    nbdAddress: '127.0.0.1:10809',
    exportName: `vol?cap=${epoch}`,
    state: `REPLICA_STATE_${state}` as ReplicaState,
    joinedEpoch: state === 'REBUILDING' ? epoch : 1,
  }));
  return { volumeId: 'vol', generation: 3, epoch, lossEpoch: 0, replicas, ...more };
}

async function bench(first: Membership, answers: (Membership | BlockwireError)[] = []) {
  const orders: MembershipOrder[] = [];
  const reused: (readonly number[])[] = [];
  const reports: { epoch: number; nodeId: string; reason: string }[] = [];
  const fenced: string[] = [];
  const device = new DeviceMembership({
    log: quietLog(),
    membership: first,
    reportLost: async ({ membership: { epoch }, nodeId, reason }) => {
      reports.push({ epoch, nodeId, reason });
      await sleep(1);
      const answer = answers.shift();
      if (answer === undefined) return device.current;
      if (answer instanceof BlockwireError) throw answer;
      return answer;
    },
    onApplied: (order, slots) => {
      orders.push(order);
      reused.push(slots);
    },
    onFenced: (reason) => fenced.push(reason),
  });
  await device.open();
  return { device, orders, reused, reports, fenced };
}

test('a membership becomes masks and targets by slot; what left keeps its slot and gets no bit', async () => {
  const { device, orders } = await bench(membership(1, { a: 'IN_SYNC', b: 'IN_SYNC' }));
  const { inSync, rebuilding, local, targets } = device.order;
  assert.deepEqual({ inSync, rebuilding, local }, { inSync: 0b11, rebuilding: 0, local: 0b11 });
  assert.deepEqual(targets[1], {
    ...{ nodeId: 'b', address: '127.0.0.1', port: 10809, exportName: 'vol?cap=1', isNode: true },
  });
  await device.update(membership(2, { b: 'IN_SYNC', a: 'STALE', c: 'REBUILDING' }));
  const [order] = orders;
  assert.deepEqual(
    [order?.epoch, order?.inSync, order?.rebuilding, order?.rejoined],
    [2, 0b010, 0b100, 0b100],
  );
  assert.equal(order?.targets[1]?.exportName, 'vol?cap=2');
  assert.equal(order?.targets[2]?.nodeId, 'c');
});

test('epochs never go back, and a membership of another generation is refused', async () => {
  const { device, orders } = await bench(membership(5, { a: 'IN_SYNC' }));
  await device.update(membership(4, { a: 'IN_SYNC', b: 'IN_SYNC' }));
  assert.deepEqual(orders, []);
  assert.equal(device.current.epoch, 5);
  for (const generation of [2, 4])
    await assert.rejects(device.update(membership(6, { a: 'IN_SYNC' }, { generation })), {
      code: 'BW_GENERATION_OLD',
    });
});

test('a loss is told once', async () => {
  const { device, orders } = await bench(membership(1, { a: 'IN_SYNC' }, { lossEpoch: 1 }));
  assert.equal(device.order.hasLoss, false);
  await device.update(membership(2, { a: 'IN_SYNC' }, { lossEpoch: 2 }));
  await device.update(membership(3, { a: 'IN_SYNC' }, { lossEpoch: 2 }));
  assert.deepEqual(
    orders.map(({ hasLoss }) => hasLoss),
    [true, false],
  );
});

test('a lost replica is reported once at a time, and its verdict applied', async () => {
  const verdict = membership(2, { a: 'IN_SYNC', b: 'STALE' });
  const { device, orders, reports } = await bench(membership(1, { a: 'IN_SYNC', b: 'IN_SYNC' }), [verdict]);
  device.lost(1, 'reset');
  device.lost(1, 'reset');
  await sleep(20);
  assert.deepEqual(reports, [{ epoch: 1, nodeId: 'b', reason: 'reset' }]);
  assert.deepEqual(
    orders.map(({ epoch, inSync }) => [epoch, inSync]),
    [[2, 0b01]],
  );
});

test('a verdict that a later membership has overtaken is answered by that one', async () => {
  const first = membership(1, { a: 'IN_SYNC', b: 'IN_SYNC' });
  const { device, orders } = await bench(first, [membership(2, { a: 'IN_SYNC', b: 'STALE' })]);
  device.lost(1, 'reset');
  await device.update(membership(3, { a: 'IN_SYNC', b: 'REBUILDING' }));
  await sleep(20);
  assert.deepEqual(
    orders.map(({ epoch, rebuilding }) => [epoch, rebuilding]),
    [
      [3, 0b10],
      [3, 0b10],
    ],
  );
});

test('a refusal that says outdated is reported also by the last replica', async () => {
  const { device, reports } = await bench(membership(1, { a: 'IN_SYNC' }));
  device.refused(0, 'BW_CAPABILITY_INVALID', 'expired');
  assert.deepEqual(reports, []);
  device.refused(0, 'BW_EPOCH_OLD', 'old');
  assert.equal(reports.length, 1);
});

test('a writer that another one has replaced is told so, and reports nothing more', async () => {
  const refusal = new BlockwireError('BW_GENERATION_OLD', 'another writer');
  const { device, reports, fenced } = await bench(membership(1, { a: 'IN_SYNC' }), [refusal]);
  device.refused(0, 'BW_GENERATION_OLD', 'cut');
  await sleep(20);
  device.lost(0, 'cut');
  await sleep(20);
  assert.deepEqual(fenced, ['another writer']);
  assert.equal(reports.length, 1);
});

test('the barrier waits for every queue, and for no longer than it may', async () => {
  const { device } = await bench(membership(1, { a: 'IN_SYNC' }));
  let isSettled = false;
  const settled = device.settled(4, 2, 1000).then(() => {
    isSettled = true;
  });
  device.queueSettled(0, 4);
  device.queueSettled(1, 3);
  await sleep(5);
  assert.equal(isSettled, false);
  device.queueSettled(1, 5);
  await settled;
  await assert.rejects(device.settled(6, 2, 10), { code: 'BW_TIMEOUT' });
  const ending = device.settled(6, 2, 1000);
  device.end();
  await assert.rejects(ending, { code: 'BW_SHUTTING_DOWN' });
});

test('a slot that serves another replica than before is named', async () => {
  const { device, reused } = await bench(membership(1, { a: 'IN_SYNC' }));
  for (let epoch = 2; epoch <= 8; epoch++)
    await device.update(membership(epoch, { a: 'IN_SYNC', [`n${epoch}`]: 'REBUILDING' }));
  await device.update(membership(9, { a: 'IN_SYNC', late: 'REBUILDING' }));
  assert.deepEqual(reused.at(-1), [1]);
  assert.ok(reused.slice(0, -1).every((slots) => slots.length === 0));
});
