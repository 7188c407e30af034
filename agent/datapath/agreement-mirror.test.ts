/** Mirrors of several queues that go by one agreement. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Agreement, AgreementWriter, createAgreement } from './agreement.ts';
import { Mirror, type ReplicaLink } from './mirror.ts';
import { Operation, RequestTable } from './request.ts';

/** One queue with a link to each of two replicas; the test plays the replicas and the main thread. */
class Queue {
  readonly requests = new RequestTable(4);
  /** What each replica was asked, by tag. */
  readonly asked: number[][] = [[], []];
  readonly completed: number[] = [];
  readonly results: number[] = [];
  readonly ready: number[] = [];
  readonly passed: string[] = [];
  readonly mirror: Mirror;

  constructor(shared: SharedArrayBuffer) {
    const links = this.asked.map(
      (tags): ReplicaLink => ({ inFlightCount: 0, submit: (tag) => tags.push(tag), close: () => {} }),
    );
    this.mirror = new Mirror({
      ...{ requests: this.requests, links, inSync: 0b11, agreement: new Agreement(shared) },
      host: {
        complete: (tag, result) => {
          this.completed.push(tag);
          this.results.push(result);
        },
        reportLost: () => {},
        fencePassed: (fence) => this.passed.push(fence),
        readyToJoin: (replica) => this.ready.push(replica),
      },
    });
    this.mirror.linkUp(0);
    this.mirror.linkUp(1);
  }

  start(tag: number, operation: number): void {
    this.requests.operation[tag] = operation;
    this.requests.offsetBytes[tag] = 0;
    this.requests.lengthBytes[tag] = 4096;
    this.mirror.start(tag);
  }
}

function setUp(): { readonly queues: readonly Queue[]; readonly main: AgreementWriter } {
  const shared = createAgreement();
  const main = new AgreementWriter(shared, 2);
  main.goBy({ epoch: 1, inSync: 0b11, rebuilding: 0, rejoined: 0b11, hasLoss: false });
  return { queues: [new Queue(shared), new Queue(shared)], main };
}

test('a queue that has not been told shows nothing of a replica that another one goes on without', () => {
  const { queues, main } = setUp();
  const late = queues[1]!;
  late.start(0, Operation.READ);
  assert.deepEqual(late.asked, [[0], []]);
  main.goBy({ epoch: 2, inSync: 0b10, rebuilding: 0, rejoined: 0, hasLoss: false });
  late.mirror.answered(0, 0, 0);
  assert.deepEqual(late.completed, [], 'the answer does not count any more');
  assert.deepEqual(late.asked, [[0], [0]]);
  late.mirror.answered(1, 0, 0);
  assert.deepEqual(late.completed, [0]);
  late.start(1, Operation.READ);
  assert.deepEqual(late.asked, [[0], [0, 1]]);
});

test('a read waits for the membership when nobody is left that may be read from', () => {
  const { queues, main } = setUp();
  const late = queues[1]!;
  late.mirror.membership(0b01);
  main.goBy({ epoch: 3, inSync: 0b10, rebuilding: 0, rejoined: 0, hasLoss: false });
  late.start(0, Operation.READ);
  assert.deepEqual([late.asked, late.completed], [[[], []], []]);
  late.mirror.linkDown(1, 'closed');
  late.mirror.linkUp(1);
  late.mirror.membership(0b10);
  late.mirror.answered(1, 0, 0);
  assert.deepEqual(late.completed, [0]);
});

test('a replica joins in all queues at once, when it is ready in all', () => {
  const { queues, main } = setUp();
  const order = { epoch: 2, inSync: 0b01, rebuilding: 0b10, rejoined: 0b10, hasLoss: false };
  main.goBy(order);
  for (const { mirror } of queues) {
    mirror.membership(0b01, 0b10, 0b10);
    mirror.linkDown(1, 'closed');
    mirror.linkUp(1);
  }
  assert.deepEqual(
    queues.map(({ ready }) => ready),
    [[1], [1]],
  );
  const [first, second] = queues;
  assert.equal(main.ready(0, 1, 2), false);
  first!.start(0, Operation.WRITE);
  assert.deepEqual(first!.asked, [[0], []], 'not before the other one is ready');
  assert.equal(main.ready(1, 1, 2), true);
  // Neither has been told: a write sees it.
  first!.mirror.answered(0, 0, 0);
  second!.start(1, Operation.WRITE);
  assert.deepEqual(second!.asked, [[1], [1]]);
  assert.equal(first!.mirror.isSettled, false);
  first!.mirror.joinAgreed();
  assert.deepEqual([first!.mirror.isSettled, first!.passed], [true, ['join']]);
});

test('a queue that has not been told of a loss completes nothing that was acknowledged before it', () => {
  const { queues, main } = setUp();
  const late = queues[1]!;
  late.start(0, Operation.WRITE);
  late.mirror.answered(0, 0, 0);
  // The second replica is out; then the first one loses power, and is taken back as it is.
  main.goBy({ epoch: 2, inSync: 0b01, rebuilding: 0, rejoined: 0, hasLoss: false });
  main.goBy({ epoch: 3, inSync: 0b01, rebuilding: 0, rejoined: 0, hasLoss: true });
  late.mirror.membership(0b01);
  late.mirror.linkDown(1, 'closed');
  assert.deepEqual([late.asked[0], late.completed], [[0, 0], []], 'it is sent again');
  late.mirror.answered(0, 0, 0);
  assert.deepEqual(late.results, [4096]);
  // Being told of it now is no other loss.
  late.start(1, Operation.FLUSH);
  late.mirror.noteLoss();
  assert.deepEqual(late.asked[0], [0, 0, 1]);
  late.mirror.answered(0, 1, 0);
  late.start(2, Operation.FLUSH);
  late.mirror.answered(0, 2, 0);
  assert.deepEqual(late.results, [4096, -5, 0]);
});
