import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Mirror, type MirrorHost, type ReplicaLink } from './mirror.ts';
import { Operation, RequestTable } from './request.ts';

/** A link whose answers the test gives. */
class FakeLink implements ReplicaLink {
  readonly submitted: number[] = [];
  inFlight = new Set<number>();
  closed = false;

  submit(tag: number): void {
    if (this.inFlight.has(tag)) return;
    this.submitted.push(tag);
    this.inFlight.add(tag);
  }

  get inFlightCount(): number {
    return this.inFlight.size;
  }

  close(): void {
    this.closed = true;
  }
}

class Bench implements MirrorHost {
  readonly requests = new RequestTable(16);
  readonly links: FakeLink[];
  readonly mirror: Mirror;
  readonly completed: [tag: number, result: number][] = [];
  readonly lost: number[] = [];
  readonly passed: string[] = [];
  /** Whether the mirror was settled whenever a fence had passed. */
  readonly settled: boolean[] = [];

  constructor(replicaCount: number) {
    this.links = Array.from({ length: replicaCount }, () => new FakeLink());
    const inSync = (1 << replicaCount) - 1;
    this.mirror = new Mirror({ requests: this.requests, links: this.links, host: this, inSync });
    for (let i = 0; i < replicaCount; i++) this.mirror.linkUp(i);
  }

  complete(tag: number, result: number): void {
    this.completed.push([tag, result]);
  }

  reportLost(replica: number): void {
    this.lost.push(replica);
  }

  fencePassed(fence: string): void {
    this.passed.push(fence);
    this.settled.push(this.mirror.isSettled);
  }

  start(tag: number, operation: number, offset = 0, length = 4096): void {
    this.requests.operation[tag] = operation;
    this.requests.offsetBytes[tag] = offset;
    this.requests.lengthBytes[tag] = length;
    this.mirror.start(tag);
  }

  answer(replica: number, tag: number, error = 0): void {
    assert.ok(this.links[replica]!.inFlight.delete(tag), `tag ${tag} is not in flight at replica ${replica}`);
    this.mirror.answered(replica, tag, error);
  }

  down(replica: number): void {
    this.links[replica]!.inFlight.clear();
    this.mirror.linkDown(replica, 'test');
  }
}

test('a write completes when all replicas acknowledged it', () => {
  const bench = new Bench(3);
  bench.start(5, Operation.WRITE);
  bench.answer(1, 5);
  bench.answer(0, 5);
  assert.deepEqual(bench.completed, []);
  bench.answer(2, 5);
  assert.deepEqual(bench.completed, [[5, 4096]]);
  assert.equal(bench.mirror.activeCount, 0);
});

test('flush and trim complete with zero, at all replicas', () => {
  const bench = new Bench(2);
  bench.start(1, Operation.FLUSH, 0, 0);
  bench.start(2, Operation.TRIM, 0, 1 << 20);
  for (const tag of [1, 2]) {
    bench.answer(0, tag);
    bench.answer(1, tag);
  }
  assert.deepEqual(bench.completed, [
    [1, 0],
    [2, 0],
  ]);
});

test('reads go to the replica with the least in flight', () => {
  const bench = new Bench(2);
  for (let tag = 0; tag < 4; tag++) bench.start(tag, Operation.READ);
  assert.equal(bench.links[0]!.inFlightCount, 2);
  assert.equal(bench.links[1]!.inFlightCount, 2);
  bench.answer(0, 0);
  assert.deepEqual(bench.completed, [[0, 4096]]);
});

test('a failed read is answered by another replica, and by an error only when all failed', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.READ);
  bench.answer(0, 0, 5);
  bench.answer(1, 0);
  assert.deepEqual(bench.completed, [[0, 4096]]);
  bench.start(1, Operation.READ);
  bench.answer(0, 1, 5);
  bench.answer(1, 1, 5);
  assert.deepEqual(bench.completed[1], [1, -5]);
});

test('a lost replica is reported once; writes wait for the membership, reads move at once', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE, 0);
  bench.start(1, Operation.READ, 8192);
  bench.answer(1, 0);
  bench.down(0);
  assert.deepEqual(bench.lost, [0]);
  bench.answer(1, 1);
  assert.deepEqual(bench.completed, [[1, 4096]], 'the write must wait for the verdict');
  bench.start(2, Operation.WRITE, 1 << 20);
  bench.answer(1, 2);
  assert.equal(bench.completed.length, 1, 'a new write waits for the verdict as well');
  bench.mirror.membership(0b10);
  assert.deepEqual(bench.completed.slice(1), [
    [0, 4096],
    [2, 4096],
  ]);
  bench.start(3, Operation.WRITE);
  bench.answer(1, 3);
  assert.deepEqual(bench.completed[3], [3, 4096]);
  assert.ok(!bench.links[0]!.inFlight.has(3));
});

test('the last replica is never reported: its requests wait, and are sent again when it is back', () => {
  const bench = new Bench(1);
  bench.start(0, Operation.WRITE, 0);
  bench.start(1, Operation.READ, 8192);
  bench.down(0);
  assert.deepEqual(bench.lost, []);
  bench.start(2, Operation.WRITE, 1 << 20);
  assert.deepEqual(bench.completed, []);
  bench.mirror.linkUp(0);
  for (const tag of [0, 1, 2]) bench.answer(0, tag);
  assert.equal(bench.completed.length, 3);
});

test('a replica that the verdict keeps gets only what it misses', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE, 0);
  bench.start(1, Operation.WRITE, 1 << 20);
  bench.answer(0, 0, 28);
  assert.deepEqual(bench.lost, [0]);
  bench.mirror.membership(0b11);
  assert.deepEqual(bench.links[0]!.submitted, [0, 1, 0]);
  for (const tag of [0, 1]) {
    bench.answer(0, tag);
    bench.answer(1, tag);
  }
  assert.equal(bench.completed.length, 2);
});

test('an error of a write is a lost replica while others are left, and the truth at the last one', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE);
  bench.answer(0, 0, 5);
  bench.answer(1, 0);
  assert.deepEqual(bench.completed, []);
  bench.mirror.membership(0b10);
  assert.ok(bench.links[0]!.closed);
  bench.down(0);
  assert.deepEqual(bench.completed, [[0, 4096]]);
  bench.start(1, Operation.WRITE);
  bench.answer(1, 1, 28);
  assert.deepEqual(bench.completed[1], [1, -28]);
});

test('a write never completes while a link that left could still read its buffer', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE);
  bench.answer(1, 0);
  bench.mirror.membership(0b10);
  assert.deepEqual(bench.completed, [], 'replica 0 still holds the buffer');
  bench.down(0);
  assert.deepEqual(bench.completed, [[0, 4096]]);
});

test('overlapping writes are serialised in arrival order; others pass', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE, 0, 8192);
  bench.start(1, Operation.WRITE, 4096, 8192);
  bench.start(2, Operation.WRITE, 8192, 4096);
  bench.start(3, Operation.WRITE, 1 << 20, 4096);
  assert.deepEqual(bench.links[0]!.submitted, [0, 3], '2 overlaps 1, which waits');
  bench.answer(0, 0);
  bench.answer(1, 0);
  assert.deepEqual(bench.links[0]!.submitted, [0, 3, 1]);
  bench.answer(0, 1);
  bench.answer(1, 1);
  assert.deepEqual(bench.links[0]!.submitted, [0, 3, 1, 2]);
  assert.equal(bench.mirror.overlapCount, 2);
});

test('failing everything completes what waits with EIO, after the links let go', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE, 0, 4096);
  bench.start(1, Operation.WRITE, 0, 4096);
  bench.start(2, Operation.READ, 8192);
  bench.mirror.failEverything();
  assert.equal(bench.completed.length, 0);
  bench.down(0);
  bench.down(1);
  assert.deepEqual(
    bench.completed.toSorted(([a], [b]) => a - b),
    [
      [0, -5],
      [1, -5],
      [2, -5],
    ],
  );
  bench.start(3, Operation.READ);
  assert.deepEqual(bench.completed[3], [3, -5]);
  assert.equal(bench.mirror.activeCount, 0);
});

test('failing what nobody serves ends when a replica is back, and spares what waits for a verdict', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE);
  bench.answer(1, 0);
  bench.links[0]!.inFlight.clear();
  bench.mirror.linkDown(0, 'gone');
  bench.mirror.failUnserved(true);
  assert.equal(bench.completed.length, 0, 'the other replica serves: the write waits for the verdict');
  bench.start(1, Operation.READ, 8192);
  bench.links[1]!.inFlight.clear();
  bench.mirror.linkDown(1, 'gone too');
  assert.deepEqual(bench.completed.map(([tag, result]) => [tag, result]).sort(), [
    [0, -5],
    [1, -5],
  ]);
  bench.start(2, Operation.WRITE);
  bench.start(3, Operation.READ);
  bench.start(4, Operation.FLUSH, 0, 0);
  assert.deepEqual(bench.completed.slice(2), [
    [2, -5],
    [3, -5],
    [4, -5],
  ]);
  bench.mirror.linkUp(1);
  bench.start(5, Operation.READ);
  bench.answer(1, 5);
  assert.deepEqual(bench.completed.at(-1), [5, 4096]);
  bench.mirror.failUnserved(false);
  bench.links[1]!.inFlight.clear();
  bench.mirror.linkDown(1, 'again');
  bench.start(6, Operation.READ);
  assert.equal(bench.completed.at(-1)![0], 5, 'it waits again');
});

test('random losses, errors and verdicts: every request completes exactly once', () => {
  for (let seed = 1; seed <= 300; seed++) {
    let state = seed;
    const random = (below: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return (state >>> 8) % below;
    };
    const bench = new Bench(3);
    const up = [true, true, true];
    let inSync = 0b111;
    const free = new Set(Array.from({ length: 16 }, (_, tag) => tag));
    const started = new Set<number>();
    let seen = 0;
    const collect = (): void => {
      for (; seen < bench.completed.length; seen++) {
        const [tag] = bench.completed[seen]!;
        assert.ok(started.delete(tag), `seed ${seed}: tag ${tag} completed twice`);
        for (const link of bench.links)
          assert.ok(!link.inFlight.has(tag), `seed ${seed}: buffer still in use`);
        free.add(tag);
      }
    };
    const verdict = (): void => {
      for (const replica of bench.lost.splice(0)) {
        if ((inSync & ~(1 << replica)) !== 0) inSync &= ~(1 << replica);
      }
      bench.mirror.membership(inSync);
    };
    for (let step = 0; step < 400; step++) {
      const replica = random(3);
      const link = bench.links[replica]!;
      switch (random(8)) {
        case 0:
        case 1:
        case 2: {
          const [tag] = free;
          if (tag === undefined) break;
          free.delete(tag);
          started.add(tag);
          bench.start(
            tag,
            [Operation.READ, Operation.WRITE, Operation.FLUSH][random(3)]!,
            random(4) * 4096,
            8192,
          );
          break;
        }
        case 3:
          if (up[replica] && random(6) === 0) {
            up[replica] = false;
            bench.down(replica);
          }
          break;
        case 4:
          if (!up[replica] && !link.closed) {
            up[replica] = true;
            bench.mirror.linkUp(replica);
          }
          break;
        case 5:
          if (random(3) === 0) verdict();
          break;
        default: {
          const tag = link.inFlight.values().next().value;
          if (tag !== undefined) bench.answer(replica, tag, random(12) === 0 ? 5 : 0);
        }
      }
      collect();
    }
    // At rest: links come back or are gone, verdicts arrive, everything is answered.
    for (let round = 0; round < 60; round++) {
      verdict();
      bench.links.forEach((link, replica) => {
        if (link.closed && up[replica]) {
          up[replica] = false;
          bench.down(replica);
        } else if (!link.closed && !up[replica]) {
          up[replica] = true;
          bench.mirror.linkUp(replica);
        }
        for (const tag of [...link.inFlight]) bench.answer(replica, tag);
      });
      collect();
    }
    assert.equal(started.size, 0, `seed ${seed}: ${started.size} requests never completed`);
    assert.equal(bench.mirror.activeCount, 0);
  }
});

test('a replica being rebuilt gets writes from its joining on, no reads, and is waited for', () => {
  const bench = new Bench(2);
  bench.mirror.membership(0b01);
  bench.down(1);
  bench.start(0, Operation.WRITE);
  bench.mirror.membership(0b01, 0b10);
  assert.equal(bench.mirror.isSettled, false);
  bench.start(1, Operation.WRITE, 4096);
  assert.deepEqual(bench.links[1]!.submitted, [], 'its link is not up');
  bench.mirror.linkUp(1);
  assert.equal(bench.mirror.writtenMask, 0b11);
  bench.start(2, Operation.WRITE, 8192);
  bench.start(3, Operation.READ, 12288);
  assert.deepEqual(bench.links[1]!.submitted, [2]);
  assert.deepEqual(bench.passed, [], 'two writes began before it joined');
  assert.equal(bench.mirror.isSettled, false);
  bench.answer(0, 0);
  bench.answer(0, 1);
  assert.deepEqual(bench.passed, ['join']);
  assert.equal(bench.mirror.isSettled, true);
  bench.answer(0, 2);
  assert.deepEqual(
    bench.completed.map(([tag]) => tag),
    [0, 1],
  );
  bench.answer(1, 2);
  assert.deepEqual(
    bench.completed.map(([tag]) => tag),
    [0, 1, 2],
  );
});

test('a replica that was in sync and is being rebuilt leaves before it joins', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE);
  bench.answer(0, 0);
  bench.mirror.membership(0b01, 0b10);
  assert.ok(bench.links[1]!.closed);
  assert.deepEqual(bench.completed, []);
  bench.down(1);
  assert.deepEqual(bench.completed, [[0, 4096]]);
  assert.deepEqual(bench.lost, [], 'a link that closes because its replica left is no loss');
  bench.mirror.linkUp(1);
  assert.deepEqual(bench.passed, ['join']);
  assert.equal(bench.mirror.isSettled, true);
});

test('a replica being rebuilt is lost like any other, even beside the last one in sync', () => {
  const bench = new Bench(2);
  bench.mirror.membership(0b01);
  bench.down(1);
  bench.mirror.membership(0b01, 0b10);
  bench.mirror.linkUp(1);
  bench.start(0, Operation.WRITE);
  bench.answer(0, 0);
  bench.down(1);
  assert.deepEqual(bench.lost, [1]);
  assert.deepEqual(bench.completed, []);
  bench.mirror.membership(0b01);
  assert.deepEqual(bench.completed, [[0, 4096]]);
});

test('a member that is still down after a membership is reported again', () => {
  const bench = new Bench(2);
  bench.down(1);
  bench.mirror.membership(0b11);
  assert.deepEqual(bench.lost, [1, 1]);
});

test('reads and writes of the same bytes are not in flight together', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE, 0, 8192);
  bench.start(1, Operation.READ, 4096);
  bench.start(2, Operation.READ, 8192);
  bench.start(3, Operation.WRITE, 8192);
  assert.deepEqual([...bench.links.flatMap((link) => link.submitted)].sort(), [0, 0, 2]);
  bench.answer(0, 0);
  bench.answer(1, 0);
  const reader = (tag: number): number => bench.links.findIndex(({ inFlight }) => inFlight.has(tag));
  assert.ok(reader(1) >= 0, 'the read goes when the write is done');
  bench.answer(reader(2), 2);
  assert.deepEqual(
    bench.links.map(({ submitted }) => submitted.includes(3)),
    [true, true],
  );
});

test('the fence passes when what was in flight is done, and never after a write failed', () => {
  const bench = new Bench(1);
  bench.mirror.fence();
  assert.deepEqual(bench.passed, ['checkpoint']);
  bench.start(0, Operation.WRITE);
  bench.mirror.fence();
  bench.start(1, Operation.WRITE, 4096);
  bench.answer(0, 1);
  assert.equal(bench.passed.length, 1);
  bench.answer(0, 0);
  assert.equal(bench.passed.length, 2);
  bench.start(2, Operation.WRITE);
  bench.mirror.fence();
  bench.answer(0, 2, 5);
  bench.mirror.fence();
  assert.equal(bench.passed.length, 2);
});

test('after a loss what is open is sent again, and flushes fail until one has said so', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE);
  bench.start(1, Operation.FLUSH);
  bench.answer(0, 0);
  bench.answer(0, 1);
  bench.down(0);
  bench.mirror.noteLoss();
  bench.mirror.linkUp(0);
  bench.mirror.membership(0b01);
  bench.down(1);
  assert.deepEqual(bench.completed, [], 'acknowledged before the loss does not count');
  bench.answer(0, 0);
  bench.start(2, Operation.FLUSH);
  bench.answer(0, 2);
  bench.answer(0, 1);
  bench.start(3, Operation.FLUSH);
  bench.answer(0, 3);
  assert.deepEqual(bench.completed, [
    [0, 4096],
    [2, -5],
    [1, -5],
    [3, 0],
  ]);
  bench.mirror.fence();
  assert.deepEqual(bench.passed, ['checkpoint'], 'a flush that tells of a loss leaves no replica behind');
});

test('while writes are held none begins, reads go on also where one waits, and the order stays', () => {
  const bench = new Bench(1);
  bench.start(0, Operation.WRITE);
  bench.start(1, Operation.WRITE, 2048);
  bench.mirror.holdWrites();
  bench.start(2, Operation.WRITE, 1 << 20);
  bench.start(3, Operation.READ, 1 << 20);
  bench.start(4, Operation.FLUSH, 0, 0);
  assert.deepEqual(bench.links[0]!.submitted, [0, 3]);
  assert.deepEqual(bench.passed, []);
  bench.answer(0, 0);
  assert.deepEqual(bench.passed, ['hold']);
  bench.answer(0, 3);
  assert.deepEqual(bench.links[0]!.submitted, [0, 3]);
  bench.mirror.releaseWrites();
  assert.deepEqual(bench.links[0]!.submitted, [0, 3, 1, 2, 4]);
});

test('held writes fail with everything else', () => {
  const bench = new Bench(1);
  bench.mirror.holdWrites();
  assert.deepEqual(bench.passed, ['hold']);
  bench.start(0, Operation.WRITE);
  bench.mirror.failEverything();
  assert.deepEqual(bench.completed, [[0, -5]]);
});

test('a member that left and joined again leaves first, its link with it', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.WRITE);
  bench.answer(0, 0);
  bench.mirror.membership(0b01, 0b10);
  bench.down(1);
  bench.mirror.linkUp(1);
  bench.links[1]!.closed = false;
  bench.start(1, Operation.WRITE, 4096);
  bench.answer(0, 1);
  bench.mirror.membership(0b01, 0b10, 0b10);
  assert.ok(bench.links[1]!.closed);
  assert.equal(bench.mirror.writtenMask, 0b01);
  bench.down(1);
  assert.deepEqual(bench.lost, []);
  assert.deepEqual(
    bench.completed.map(([tag]) => tag),
    [0, 1],
  );
  assert.equal(bench.mirror.isSettled, false);
  bench.mirror.linkUp(1);
  assert.equal(bench.mirror.isSettled, true);
});

test('writes that end as a member leaves do not pass the barrier that it is to join behind', () => {
  const bench = new Bench(3);
  bench.mirror.membership(0b011);
  bench.down(2);
  bench.start(0, Operation.WRITE);
  bench.start(1, Operation.WRITE, 0);
  bench.answer(0, 0);
  bench.mirror.membership(0b011, 0b100, 0b100);
  bench.mirror.linkUp(2);
  bench.down(1);
  bench.mirror.membership(0b001, 0b110, 0b010);
  assert.deepEqual(bench.completed, [[0, 4096]]);
  assert.deepEqual([bench.passed, bench.settled], [['join'], [false]]);
  assert.equal(bench.mirror.isSettled, false);
  assert.deepEqual(bench.lost, [1]);
  bench.answer(0, 1);
  bench.answer(2, 1);
  bench.mirror.linkUp(1);
  assert.equal(bench.mirror.isSettled, true);
});

test('a replica that leaves before its link is up is closed, and the barrier waits for it no more', () => {
  const bench = new Bench(2);
  bench.mirror.membership(0b01);
  bench.down(1);
  bench.links[1]!.closed = false;
  bench.start(0, Operation.WRITE);
  bench.mirror.membership(0b01, 0b10);
  assert.equal(bench.mirror.isSettled, false);
  bench.mirror.membership(0b01);
  assert.ok(bench.links[1]!.closed);
  assert.equal(bench.mirror.isSettled, true);
});

test('a local replica is asked first until it has a few requests more in flight', () => {
  const bench = new Bench(2);
  bench.mirror.localMask = 0b10;
  for (let tag = 0; tag < 6; tag++) bench.start(tag, Operation.READ, tag * 4096);
  assert.deepEqual(
    bench.links.map(({ inFlightCount }) => inFlightCount),
    [1, 5],
  );
  bench.down(1);
  assert.equal(bench.links[0]!.inFlightCount, 6);
});

test('an error of one replica on a read is counted', () => {
  const bench = new Bench(2);
  bench.start(0, Operation.READ);
  bench.answer(0, 0, 5);
  bench.answer(1, 0);
  assert.deepEqual(bench.completed, [[0, 4096]]);
  assert.equal(bench.mirror.readErrorCount, 1);
});

/** Replica 1 is being rebuilt and has acknowledged the write of tag 0, which has failed on replica 0, the one in sync. */
function spoiledRebuild(): Bench {
  const bench = new Bench(2);
  bench.mirror.membership(0b01, 0b10);
  bench.down(1);
  bench.mirror.linkUp(1);
  bench.start(0, Operation.WRITE);
  bench.answer(1, 0);
  bench.answer(0, 0, 5);
  return bench;
}

test('a write that fails on the last replica in sync ends the rebuilds that copy from it, and then itself', () => {
  const bench = spoiledRebuild();
  assert.deepEqual(bench.lost, [1]);
  assert.deepEqual(bench.completed, [], 'it is on a replica that may be in sync before the verdict');
  // Memberships that know nothing of it yet, the last one of a rebuild that has ended.
  bench.mirror.membership(0b01, 0b10);
  bench.mirror.membership(0b11);
  assert.deepEqual([bench.lost, bench.completed], [[1, 1, 1], []], 'reported until there is a verdict');
  bench.mirror.membership(0b01);
  bench.down(1);
  assert.deepEqual(bench.completed, [[0, -5]]);
});

test('a rebuild that a failed write has spoiled is served again once it is the last one in sync', () => {
  const bench = spoiledRebuild();
  bench.mirror.membership(0b10);
  bench.down(0);
  bench.answer(1, 0);
  assert.deepEqual(bench.completed, [[0, -5]]);
});
