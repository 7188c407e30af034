/** The main thread's orders to a queue, with real links to nodes that the test plays. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  NBD_CMD_BLOCKWIRE_CHECKPOINT,
  NBD_CMD_BLOCKWIRE_MARK,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
} from '@blockwire/proto/nbd/constants.ts';
import { FakeNode } from '../testing/fake-node.ts';
import { LinkBench } from '../testing/link-bench.ts';
import type { FromWorker, MembershipOrder } from './messages.ts';
import { QueueOrders } from './queue-orders.ts';
import { Operation } from './request.ts';

interface Queue {
  readonly bench: LinkBench;
  readonly nodes: readonly FakeNode[];
  readonly orders: QueueOrders;
  readonly said: FromWorker[];
  /** Goes by a membership in which these slots are in sync, and being rebuilt; slot N is served by `nodes[N]`. */
  readonly goBy: (epoch: number, inSync: number, more?: Partial<MembershipOrder>) => void;
}

async function withQueue(nodeCount: number, run: (queue: Queue) => Promise<void>): Promise<void> {
  const nodes = await Promise.all(Array.from({ length: nodeCount }, () => FakeNode.start()));
  const bench = new LinkBench([], { exportName: 'vol?cap=x' });
  const said: FromWorker[] = [];
  const orders = new QueueOrders({
    ...{ mirror: bench.mirror, links: bench.links, marks: bench.marks },
    makeLink: (slot) => bench.makeLink(slot),
    say: (message) => said.push(message),
  });
  bench.onFence = (fence) => orders.fencePassed(fence);
  const goBy = (epoch: number, inSync: number, more: Partial<MembershipOrder> = {}): void => {
    const rebuilding = more.rebuilding ?? 0;
    const slots = 32 - Math.clz32(inSync | rebuilding);
    const targets = nodes.slice(0, slots).map(({ port }, slot) => ({
      ...{ nodeId: `n${slot}`, address: '127.0.0.1', port },
      ...{ exportName: `vol?cap=${epoch}`, isNode: true },
    }));
    orders.obey({
      ...{ type: 'membership', epoch, inSync, rebuilding, rejoined: 0, local: 0, hasLoss: false, targets },
      ...more,
    });
  };
  try {
    await run({ bench, nodes, orders, said, goBy });
    orders.end();
    await bench.close();
  } finally {
    for (const node of nodes) node.close();
  }
}

function settledEpochs(said: readonly FromWorker[]): number[] {
  return said.flatMap((message) => (message.type === 'settled' ? [message.epoch] : []));
}

test('a replica that a later membership names is connected to, joins, and is written to; then the barrier has passed', () =>
  withQueue(2, async ({ bench, nodes, said, goBy }) => {
    goBy(1, 0b01);
    await bench.pump(() => bench.mirror.servingMask === 0b01, 'up');
    nodes[0]!.answers = (type) => type !== NBD_CMD_WRITE;
    bench.start(0, Operation.WRITE, 0, 4096);
    await bench.pump(() => nodes[0]!.told(NBD_CMD_WRITE).length === 1, 'a write that is not answered');
    goBy(2, 0b01, { rebuilding: 0b10, rejoined: 0b10 });
    await bench.pump(() => bench.mirror.writtenMask === 0b11, 'joined');
    assert.deepEqual(settledEpochs(said), [1], 'a write from before is under way');
    assert.ok(nodes[1]!.names.every((name) => name.includes('cap=2') && name.includes('epoch=2')));
    nodes[0]!.answers = () => true;
    nodes[0]!.reset();
    await bench.pump(() => bench.results.has(0), 'the write from before');
    assert.deepEqual(settledEpochs(said), [1, 2]);
    bench.start(1, Operation.WRITE, 8192, 4096);
    bench.start(2, Operation.READ, 65536, 4096);
    await bench.pump(() => bench.results.size === 3, 'later ones');
    assert.equal(nodes[1]!.told(NBD_CMD_WRITE).length, 1);
    assert.equal(nodes[1]!.told(NBD_CMD_READ).length, 0);
    goBy(3, 0b11);
    assert.deepEqual(settledEpochs(said), [1, 2, 3]);
    assert.equal(bench.mirror.servingMask, 0b11);
  }));

test('a slot that another replica gets is connected to that one, after the first is let go', () =>
  withQueue(3, async ({ bench, nodes, goBy }) => {
    goBy(1, 0b11);
    await bench.pump(() => bench.mirror.servingMask === 0b11, 'up');
    const [first] = nodes;
    const other = { nodeId: 'other', address: '127.0.0.1', port: nodes[2]!.port };
    const targets = [
      { nodeId: 'n0', address: '127.0.0.1', port: first!.port, exportName: 'vol?cap=2', isNode: true },
      { ...other, exportName: 'vol?cap=2', isNode: true },
    ];
    goBy(2, 0b01, { rebuilding: 0b10, rejoined: 0b10, targets });
    await bench.pump(() => bench.mirror.isSettled, 'joined');
    assert.deepEqual(bench.lost, []);
    bench.start(0, Operation.WRITE, 0, 4096);
    await bench.pump(() => bench.results.has(0), 'written');
    assert.equal(nodes[1]!.told(NBD_CMD_WRITE).length, 0);
    assert.equal(nodes[2]!.told(NBD_CMD_WRITE).length, 1);
  }));

test('MARK goes to every member, the fence is told with its number, and CHECKPOINT follows on order', () =>
  withQueue(2, async ({ bench, nodes, orders, said, goBy }) => {
    goBy(1, 0b11);
    await bench.pump(() => bench.mirror.servingMask === 0b11, 'up');
    nodes[1]!.answers = (type) => type !== NBD_CMD_WRITE;
    bench.start(0, Operation.WRITE, 0, 4096);
    orders.obey({ type: 'mark', number: 4, epoch: 1 });
    await bench.pump(() => nodes[1]!.told(NBD_CMD_BLOCKWIRE_MARK).length === 1, 'marked');
    assert.ok(!said.some(({ type }) => type === 'fence'));
    goBy(2, 0b01);
    await bench.pump(() => bench.results.has(0), 'written without the second one');
    assert.deepEqual(
      said.find(({ type }) => type === 'fence'),
      { type: 'fence', number: 4 },
    );
    orders.obey({ type: 'checkpoint', number: 4, epoch: 1 });
    await bench.pump(() => nodes[0]!.told(NBD_CMD_BLOCKWIRE_CHECKPOINT).length === 1, 'checkpoint');
    assert.equal(nodes[1]!.told(NBD_CMD_BLOCKWIRE_CHECKPOINT).length, 0);
  }));

test('writes are held and let go on order', () =>
  withQueue(1, async ({ bench, nodes, orders, said, goBy }) => {
    goBy(1, 0b1);
    await bench.pump(() => bench.mirror.servingMask === 0b1, 'up');
    bench.start(0, Operation.WRITE, 0, 4096);
    orders.obey({ type: 'hold', number: 9 });
    assert.ok(!said.some(({ type }) => type === 'held'));
    await bench.pump(() => said.some(({ type }) => type === 'held'), 'held');
    assert.deepEqual(said.at(-1), { type: 'held', number: 9 });
    bench.start(1, Operation.WRITE, 0, 4096);
    bench.start(2, Operation.READ, 0, 4096);
    await bench.pump(() => bench.results.has(2), 'read');
    assert.equal(nodes[0]!.told(NBD_CMD_WRITE).length, 1);
    orders.obey({ type: 'unhold' });
    await bench.pump(() => bench.results.has(1), 'written');
  }));

test('after a loss a flush fails once', () =>
  withQueue(1, async ({ bench, goBy }) => {
    goBy(1, 0b1);
    await bench.pump(() => bench.mirror.servingMask === 0b1, 'up');
    goBy(2, 0b1, { hasLoss: true });
    bench.start(0, Operation.FLUSH, 0, 0);
    await bench.pump(() => bench.results.has(0), 'flushed');
    bench.start(1, Operation.FLUSH, 0, 0);
    await bench.pump(() => bench.results.has(1), 'flushed again');
    assert.deepEqual([bench.results.get(0), bench.results.get(1)], [-5, 0]);
  }));

test('a device that fails everything, or ends, takes no membership any more', () =>
  withQueue(1, async ({ bench, nodes, orders, goBy }) => {
    goBy(1, 0b1);
    await bench.pump(() => bench.mirror.servingMask === 0b1, 'up');
    nodes[0]!.answers = () => false;
    bench.start(0, Operation.WRITE, 0, 4096);
    await bench.pump(() => nodes[0]!.told(NBD_CMD_WRITE).length === 1, 'sent');
    orders.obey({ type: 'fail' });
    goBy(2, 0b1);
    await bench.pump(() => bench.links[0]!.idle, 'down');
    assert.equal(bench.results.get(0), -5);
    bench.start(1, Operation.READ, 0, 4096);
    assert.equal(bench.results.get(1), -5);
    const before = nodes[0]!.names.length;
    const untilMs = performance.now() + 400;
    await bench.pump(() => performance.now() > untilMs, 'time passes');
    assert.equal(nodes[0]!.names.length, before);
  }));
