/** Buffer pool, write order. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../testing/simulated-io.ts';
import { blockFrom, blockOf, spanOf, withinBlock } from './block-math.ts';
import { BLOCK_BYTES_MAX, BufferPool, NO_BLOCK, ORDER_MAX, orderFor, UNIT_BYTES } from './buffer-pool.ts';
import { nbdErrorOf } from './disk-errors.ts';
import { SlotQueue, Slots } from './slots.ts';
import { WriteOrder } from './write-order.ts';

test('orders hold their sizes', () => {
  for (const [size, order] of [
    [1, 0],
    [4096, 0],
    [4097, 1],
    [8192, 1],
    [8193, 2],
    [65536, 4],
    [BLOCK_BYTES_MAX - 4095, 8],
    [BLOCK_BYTES_MAX, ORDER_MAX],
  ] as const) {
    assert.equal(orderFor(size), order, String(size));
  }
});

test('blocks never overlap, are aligned, and all memory comes back', () => {
  const random = seededRandom(42);
  const pool = new BufferPool(4 * BLOCK_BYTES_MAX);
  const owner = new Int32Array(pool.sizeBytes / UNIT_BYTES);
  const held: { at: number; order: number }[] = [];
  for (let i = 1; i < 20_000; i++) {
    if (held.length > 0 && random() % 2 === 0) {
      const [block] = held.splice(random() % held.length, 1);
      owner.fill(0, block!.at / UNIT_BYTES, block!.at / UNIT_BYTES + (1 << block!.order));
      pool.free(block!.at, block!.order);
      continue;
    }
    const order = random() % (ORDER_MAX + 1);
    const at = pool.allocate(order);
    if (at === NO_BLOCK) continue;
    assert.equal(at % (UNIT_BYTES << order), 0);
    for (let unit = at / UNIT_BYTES; unit < at / UNIT_BYTES + (1 << order); unit++) {
      assert.equal(owner[unit], 0, `unit ${unit} is handed out twice`);
      owner[unit] = i;
    }
    held.push({ at, order });
  }
  for (const block of held) pool.free(block.at, block.order);
  assert.equal(pool.freeBytes, pool.sizeBytes);
  for (let i = 0; i < 4; i++) assert.notEqual(pool.allocate(ORDER_MAX), NO_BLOCK);
  assert.equal(pool.allocate(0), NO_BLOCK);
});

test('block arithmetic holds beyond 2^32', () => {
  for (const base of [0, 2 ** 32, 2 ** 45]) {
    assert.equal(withinBlock(base + 5), 5);
    assert.equal(blockOf(base), base / 4096);
    assert.equal(blockOf(base + 4095), base / 4096);
    assert.equal(blockFrom(base), base / 4096);
    assert.equal(blockFrom(base + 1), base / 4096 + 1);
    assert.equal(spanOf(base + 4095, 2), 8192);
    assert.equal(spanOf(base, 4096), 4096);
  }
});

test('errno numbers become the errors of the specification', () => {
  assert.deepEqual([28, 27, 122, 1, 30, 12, 5, 71].map(nbdErrorOf), [28, 28, 28, 1, 1, 12, 5, 5]);
});

test('overlapping ranges go in the order of arrival, others at once', () => {
  const slots = new Slots(16);
  const order = new WriteOrder(slots);
  const granted = new SlotQueue();
  const arrive = (start: number, end: number, connection = 0): { slot: number; active: boolean } => {
    const slot = slots.take();
    slots.rangeStart[slot] = start;
    slots.rangeEnd[slot] = end;
    slots.connection[slot] = connection;
    return { slot, active: order.acquire(slot) };
  };
  const release = (slot: number): number[] => {
    order.release(slot, granted);
    const now: number[] = [];
    while (!granted.isEmpty) now.push(granted.shift(slots));
    return now;
  };
  const a = arrive(0, 8192);
  const b = arrive(4096, 12288);
  const c = arrive(8192, 16384);
  const d = arrive(16384, 20480);
  const e = arrive(0, 4096);
  assert.deepEqual(
    [a, b, c, d, e].map(({ active }) => active),
    [true, false, false, true, false],
  );
  assert.deepEqual(release(a.slot), [b.slot, e.slot], 'c still waits for b');
  assert.deepEqual(release(e.slot), []);
  assert.deepEqual(release(b.slot), [c.slot]);
  const f = arrive(16384, 20480, 5);
  const g = arrive(16384, 24576, 6);
  assert.deepEqual([f.active, g.active], [false, false]);
  const dropped = new SlotQueue();
  order.drop(5, dropped, granted);
  assert.equal(dropped.shift(slots), f.slot);
  assert.ok(granted.isEmpty, 'd is still at work');
  assert.deepEqual(release(d.slot), [g.slot]);
  assert.equal(order.waitingCount, 0);
});
