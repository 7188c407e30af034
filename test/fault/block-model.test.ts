/** The model itself: what it must allow, and what it must not. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BLOCK_BYTES, blockContent, describeContent, rangeContent } from './block-content.ts';
import { BlockModel, type Effect } from './block-model.ts';

const zeroes = Buffer.alloc(BLOCK_BYTES);
const a = blockContent(7, 1);
const b = blockContent(7, 2);
const write = (data: Buffer, at = 0): Effect => ({ kind: 'write', at, data });

function holds(prepare: (model: BlockModel) => void, content: Buffer): boolean {
  const model = new BlockModel();
  prepare(model);
  return model.settled(content) === null;
}

test('an open write has happened or not, an answered one has', () => {
  const open = (model: BlockModel): void => void model.sent(0, write(a));
  assert.ok(holds(open, zeroes));
  assert.ok(holds(open, a));
  assert.ok(!holds(open, b));
  const answered = (model: BlockModel): void => model.answered(model.sent(0, write(a)));
  assert.ok(holds(answered, a));
  assert.ok(!holds(answered, zeroes));
});

test('a torn block is never allowed', () => {
  const torn = Buffer.concat([a.subarray(0, 2048), b.subarray(2048)]);
  const both = (model: BlockModel): void => {
    model.answered(model.sent(0, write(a)));
    model.sent(0, write(b));
  };
  assert.ok(!holds(both, torn));
  assert.match(describeContent(torn), /mixed/);
});

test('one connection keeps its order, two do not', () => {
  const one = (model: BlockModel): void => {
    model.sent(0, write(a));
    model.answered(model.sent(0, write(b)));
  };
  assert.ok(holds(one, b));
  assert.ok(!holds(one, a));
  const two = (model: BlockModel): void => {
    model.sent(0, write(a));
    model.answered(model.sent(1, write(b)));
  };
  assert.ok(holds(two, b));
  assert.ok(holds(two, a));
  assert.ok(!holds(two, zeroes));
});

test('two open at once, both answered: either order; a later one settles it', () => {
  const both = (model: BlockModel): void => {
    const first = model.sent(0, write(a));
    const second = model.sent(1, write(b));
    model.answered(first);
    model.answered(second);
  };
  assert.ok(holds(both, a));
  assert.ok(holds(both, b));
  assert.ok(!holds(both, zeroes));
  const later = (model: BlockModel): void => {
    both(model);
    model.answered(model.sent(0, { kind: 'zero', at: 0, lengthBytes: BLOCK_BYTES }));
  };
  assert.ok(holds(later, zeroes));
  assert.ok(!holds(later, a));
});

test('parts of blocks: every combination, each part as a whole', () => {
  const parts = (model: BlockModel): void => {
    model.sent(0, write(a.subarray(0, 100)));
    model.sent(1, write(a.subarray(50, 200), 50));
  };
  const image = (...ranges: [number, number][]): Buffer => {
    const content = Buffer.alloc(BLOCK_BYTES);
    for (const [from, to] of ranges) a.copy(content, from, from, to);
    return content;
  };
  for (const content of [image(), image([0, 100]), image([50, 200]), image([0, 200])]) {
    assert.ok(holds(parts, content));
  }
  assert.ok(!holds(parts, image([0, 60])));
});

test('a trim of a whole block zeroes it, of a part of one perhaps', () => {
  const trim = (lengthBytes: number) => (model: BlockModel) => {
    model.answered(model.sent(0, write(a)));
    model.answered(model.sent(0, { kind: 'trim', at: 0, lengthBytes }));
  };
  assert.ok(holds(trim(BLOCK_BYTES), zeroes));
  assert.ok(!holds(trim(BLOCK_BYTES), a));
  assert.ok(holds(trim(512), a));
  assert.ok(holds(trim(512), Buffer.concat([Buffer.alloc(512), a.subarray(512)])));
});

test('a trim that does nothing may be answered before what was sent earlier', () => {
  const early = (model: BlockModel): void => {
    model.answered(model.sent(0, write(a)));
    model.sent(0, write(b));
    model.answered(model.sent(0, { kind: 'trim', at: 0, lengthBytes: 512 }));
  };
  assert.ok(holds(early, a));
  assert.ok(holds(early, b));
  assert.ok(!holds(early, zeroes));
  assert.ok(!holds(early, Buffer.concat([Buffer.alloc(512), a.subarray(512)])));
});

test('after the restart nothing is open any more', () => {
  const model = new BlockModel();
  model.sent(0, write(a));
  assert.equal(model.settled(zeroes), null);
  assert.match(model.settled(a) ?? '', /holds block 7 sequence 1; may hold zeroes/);
});

test('a read sees what the block held at some moment of it, whole unless a write was under way', () => {
  const model = new BlockModel();
  model.answered(model.sent(0, write(a)));
  const before = model.beginRead();
  model.answered(model.sent(0, write(b)));
  assert.equal(model.endRead(before, a), null);
  assert.notEqual(model.endRead(before, zeroes), null);
  const after = model.beginRead();
  assert.notEqual(model.endRead(after, a), null, 'back in time');
  assert.equal(model.endRead(model.beginRead(), b), null);
});

test('a range is its blocks', () => {
  assert.ok(rangeContent(3 * BLOCK_BYTES, BLOCK_BYTES, 9).equals(blockContent(3, 9)));
  const across = rangeContent(4 * BLOCK_BYTES - 10, 20, 9);
  assert.ok(
    across.equals(Buffer.concat([blockContent(3, 9).subarray(-10), blockContent(4, 9).subarray(0, 10)])),
  );
});
