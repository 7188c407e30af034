import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Member, MemberSlots, type MemberState } from './members.ts';

function member(nodeId: string, state: MemberState = 'inSync', joinedEpoch = 1): Member {
  return { nodeId, state, joinedEpoch };
}

test('a replica keeps its slot, whatever the order of the list', () => {
  const slots = new MemberSlots();
  assert.deepEqual(slots.apply([member('a'), member('b')]), { inSync: 0b11, rebuilding: 0, rejoined: 0b11 });
  assert.deepEqual(slots.apply([member('b'), member('a', 'stale')]), {
    inSync: 0b10,
    rebuilding: 0,
    rejoined: 0,
  });
  const back = slots.apply([member('b'), member('a', 'rebuilding', 3)]);
  assert.deepEqual(back, { inSync: 0b10, rebuilding: 0b01, rejoined: 0b01 });
  assert.deepEqual(slots.apply([member('b'), member('a', 'inSync', 3)]), {
    inSync: 0b11,
    rebuilding: 0,
    rejoined: 0,
  });
});

test('a replacement gets a slot of its own, and at last one whose replica is gone', () => {
  const slots = new MemberSlots();
  for (let epoch = 1; epoch <= 7; epoch++)
    slots.apply([member('a'), member(`n${epoch}`, 'rebuilding', epoch)]);
  assert.equal(slots.nodeIds.length, 8);
  const masks = slots.apply([member('a'), member('n1', 'stale'), member('late', 'rebuilding', 9)]);
  assert.equal(slots.slotOf('late'), 2, 'n1 is still listed');
  assert.deepEqual(masks, { inSync: 0b1, rebuilding: 0b100, rejoined: 0b100 });
  assert.equal(slots.slotOf('n2'), null);
});

test('stale replicas give way when every slot is needed', () => {
  const slots = new MemberSlots();
  const eight = Array.from({ length: 8 }, (_, i) => member(`n${i}`));
  slots.apply(eight);
  slots.apply([...eight.slice(1), member('n0', 'stale'), member('new', 'rebuilding', 2)]);
  assert.equal(slots.slotOf('new'), 0);
  assert.throws(() => slots.apply([...eight, member('new', 'rebuilding', 2)]), RangeError);
});
