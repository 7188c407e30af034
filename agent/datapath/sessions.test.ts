/** What a link says of itself to a node, when it is let in and when it is not, and the marks on its connections. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  NBD_CMD_BLOCKWIRE_CHECKPOINT,
  NBD_CMD_BLOCKWIRE_MARK,
  NBD_CMD_WRITE,
} from '@blockwire/proto/nbd/constants.ts';
import { parseExportName } from '@blockwire/shared/export-name.ts';
import { FakeNode } from '../testing/fake-node.ts';
import { LinkBench } from '../testing/link-bench.ts';
import { Operation } from './request.ts';

const EXPORT = 'vol-1?cap=secret';

async function withNodes(
  count: number,
  run: (bench: LinkBench, nodes: readonly FakeNode[]) => Promise<void>,
  options: { timeoutMs?: number; before?: (nodes: readonly FakeNode[]) => void } = {},
): Promise<void> {
  const nodes = await Promise.all(Array.from({ length: count }, () => FakeNode.start()));
  options.before?.(nodes);
  const ports = nodes.map(({ port }) => port);
  const bench = new LinkBench(ports, { exportName: EXPORT, ...options });
  try {
    await run(bench, nodes);
    await bench.close();
  } finally {
    for (const node of nodes) node.close();
  }
}

test('all connections of an attempt name the session; the next attempt is a higher one', () =>
  withNodes(1, async (bench, [node]) => {
    await bench.pump(() => bench.links[0]!.up, 'up');
    const first = node!.names.map(parseExportName);
    assert.ok(first.length > 1);
    for (const { volumeId, capability, epoch, link, attempt } of first) {
      assert.deepEqual({ volumeId, capability }, { volumeId: 'vol-1', capability: 'secret' });
      assert.deepEqual({ epoch, link, attempt }, { epoch: 1, link: 'bench/att/0', attempt: 1 });
    }
    bench.aim(0, node!.port, 2);
    node!.reset();
    await bench.pump(() => !bench.links[0]!.up, 'down');
    await bench.pump(() => bench.links[0]!.up, 'up again');
    const second = node!.names.slice(first.length).map(parseExportName);
    assert.ok(second.every(({ epoch, attempt }) => epoch === 2 && attempt === 2));
  }));

test('MARK comes in order with the writes, first on every new connection; CHECKPOINT behind it', () =>
  withNodes(1, async (bench, [node]) => {
    const [link] = bench.links;
    await bench.pump(() => link!.up, 'up');
    bench.start(0, Operation.WRITE, 0, 4096);
    link!.submitMark(bench.marks.mark({ number: 7, epoch: 3 }));
    bench.mirror.fence();
    bench.start(1, Operation.WRITE, 8192, 4096);
    await bench.pump(() => bench.results.size === 2, 'writes');
    assert.deepEqual(bench.passed, ['checkpoint']);
    link!.submitMark(bench.marks.checkpoint({ number: 7, epoch: 3 }));
    await bench.pump(() => node!.told(NBD_CMD_BLOCKWIRE_CHECKPOINT).length === 1, 'checkpoint');
    assert.deepEqual(
      node!.requests.map(({ type, offset, length }) => [type, offset, length]),
      [
        [NBD_CMD_WRITE, 0, 4096],
        [NBD_CMD_BLOCKWIRE_MARK, 7, 3],
        [NBD_CMD_WRITE, 8192, 4096],
        [NBD_CMD_BLOCKWIRE_CHECKPOINT, 7, 3],
      ],
    );
    // What is sent again comes behind the mark as well.
    node!.answers = (type) => type !== NBD_CMD_WRITE;
    bench.start(2, Operation.WRITE, 0, 4096);
    await bench.pump(() => node!.told(NBD_CMD_WRITE).length === 3, 'a write that is not answered');
    node!.requests.length = 0;
    node!.answers = () => true;
    node!.reset();
    await bench.pump(() => bench.results.has(2), 'answered after the return');
    assert.deepEqual(
      node!.requests.map(({ type, offset }) => [type, offset]),
      [
        [NBD_CMD_BLOCKWIRE_MARK, 7],
        [NBD_CMD_WRITE, 0],
      ],
    );
  }));

test('marks without an answer end the connection before one is lost', () =>
  withNodes(1, async (bench, [node]) => {
    const [link] = bench.links;
    node!.answers = () => false;
    await bench.pump(() => link!.up, 'up');
    for (let number = 1; number <= 8; number++) link!.submitMark(bench.marks.mark({ number, epoch: 1 }));
    assert.equal(link!.up, true);
    link!.submitMark(bench.marks.mark({ number: 9, epoch: 1 }));
    await bench.pump(() => bench.changes.some(({ up }) => !up), 'given up');
    assert.match(bench.changes.find(({ up }) => !up)!.reason, /several marks/);
  }));

for (const code of ['BW_EPOCH_OLD', 'BW_GENERATION_OLD', 'BW_CAPABILITY_INVALID']) {
  test(`${code} is a loss, reported with its code and without the capability`, () =>
    withNodes(
      2,
      async (bench) => {
        await bench.pump(() => bench.lost.length > 0, 'lost');
        const { refusal, reason } = bench.changes.find(({ up }) => !up)!;
        assert.equal(refusal, code);
        assert.match(reason, new RegExp(code));
        assert.ok(!reason.includes('secret'));
      },
      { before: ([node]) => (node!.refusal = code) },
    ));
}

test('a membership that is not installed yet is asked for again soon, and is a loss only after the timeout', () =>
  withNodes(
    2,
    async (bench, [node]) => {
      await bench.pump(() => node!.names.length > 12, 'several attempts');
      assert.deepEqual(bench.lost, []);
      node!.refusal = null;
      await bench.pump(() => bench.links[0]!.up, 'let in');
      assert.deepEqual(bench.lost, []);
      node!.refusal = 'BW_CONFLICT';
      node!.reset();
      await bench.pump(() => bench.lost.length === 1, 'the loss of what was up');
      bench.mirror.membership(0b11);
      await bench.pump(() => bench.lost.length >= 2, 'still away');
    },
    { timeoutMs: 600, before: ([node]) => (node!.refusal = 'BW_CONFLICT') },
  ));

test('a refusal of an epoch that the link does not go by any more is no loss', () =>
  withNodes(2, async (bench, [node]) => {
    await bench.pump(() => bench.links.every(({ up }) => up), 'up');
    node!.names.length = 0;
    bench.mirror.membership(0b10);
    await bench.pump(() => bench.links[0]!.idle, 'left');
    // The membership changes between the attempt and its answer.
    node!.onName = () => {
      bench.aim(0, node!.port, 2);
      node!.refusal = node!.names.some((name) => name.includes('epoch=2')) ? null : 'BW_EPOCH_OLD';
    };
    bench.mirror.membership(0b10, 0b01);
    bench.links[0]!.start(bench.mirror, performance.now());
    await bench.pump(() => bench.links[0]!.up, 'let in under the new epoch');
    assert.deepEqual(bench.lost, []);
    assert.equal(bench.mirror.isSettled, true);
  }));

test('a replica that leaves and joins again at once gets a new session, and neither is a loss', () =>
  withNodes(2, async (bench, [node]) => {
    await bench.pump(() => bench.links.every(({ up }) => up), 'up');
    const before = node!.names.length;
    bench.aim(0, node!.port, 5);
    bench.mirror.membership(0b10, 0b01, 0b01);
    bench.links[0]!.start(bench.mirror, performance.now());
    // Again, while it is not even connected.
    await bench.pump(() => bench.links[0]!.idle === false, 'on its way');
    bench.mirror.membership(0b10, 0b01, 0b01);
    bench.links[0]!.start(bench.mirror, performance.now());
    await bench.pump(() => bench.mirror.isSettled, 'joined');
    assert.deepEqual(bench.lost, []);
    const attempts = node!.names.slice(before).map((name) => parseExportName(name).epoch);
    assert.ok(attempts.length > 0 && attempts.every((epoch) => epoch === 5));
    bench.start(0, Operation.WRITE, 0, 4096);
    await bench.pump(() => bench.results.has(0), 'written');
    assert.equal(node!.told(NBD_CMD_WRITE).length, 1);
  }));

test('a replica on another address is found there at the next attempt', () =>
  withNodes(2, async (bench, [old, other]) => {
    await bench.pump(() => bench.links.every(({ up }) => up), 'up');
    const before = other!.names.length;
    bench.aim(0, other!.port, 2);
    old!.close();
    await bench.pump(() => !bench.links[0]!.up, 'down');
    await bench.pump(() => bench.links[0]!.up, 'up elsewhere');
    assert.ok(other!.names.length > before);
  }));

test('an error on a read is answered from another replica', () =>
  withNodes(2, async (bench, [node]) => {
    await bench.pump(() => bench.links.every(({ up }) => up), 'up');
    node!.error = 5;
    for (let tag = 0; tag < 4; tag++)
      bench.start(tag, Operation.READ, tag * 65536, tag % 2 === 0 ? 4096 : 65536);
    await bench.pump(() => bench.results.size === 4, 'read');
    assert.ok([...bench.results.values()].every((result) => result > 0));
    assert.ok(bench.mirror.readErrorCount > 0);
  }));

test('a node with a slow disk that answers marks is waited for, one that says nothing is not', () =>
  withNodes(
    2,
    async (bench, [node]) => {
      await bench.pump(() => bench.links.every(({ up }) => up), 'up');
      const row = bench.marks.mark({ number: 1, epoch: 1 });
      for (const link of bench.links) link.submitMark(row);
      node!.answers = (type) => type === NBD_CMD_BLOCKWIRE_MARK;
      bench.start(0, Operation.WRITE, 0, 4096);
      // Least loaded first, large ones on connections of their own: at the slow node, too.
      for (let tag = 1; tag < 4; tag++) bench.start(tag, Operation.READ, tag * 65536, 65536);
      const untilMs = performance.now() + 1200;
      await bench.pump(() => performance.now() > untilMs, 'time passes');
      assert.deepEqual(bench.lost, []);
      assert.ok(node!.told(NBD_CMD_BLOCKWIRE_MARK).length > 2);
      assert.ok(new Set(node!.told(NBD_CMD_BLOCKWIRE_MARK).map(({ connection }) => connection)).size > 1);
      node!.answers = () => false;
      const fromMs = performance.now();
      await bench.pump(() => bench.lost.length === 1, 'given up');
      assert.ok(performance.now() - fromMs < 1000);
      assert.match(bench.lost[0]!, /no answer for 300 ms/);
    },
    { timeoutMs: 300 },
  ));

test('asking for a sign of life does not lengthen the silence', () =>
  withNodes(
    2,
    async (bench, [node]) => {
      await bench.pump(() => bench.links.every(({ up }) => up), 'up');
      const row = bench.marks.mark({ number: 1, epoch: 1 });
      for (const link of bench.links) link.submitMark(row);
      await bench.pump(() => bench.links.every(({ inFlightCount }) => inFlightCount === 0), 'marked');
      node!.answers = () => false;
      bench.start(0, Operation.WRITE, 0, 4096);
      await bench.pump(() => node!.told(NBD_CMD_WRITE).length === 1, 'sent');
      // Time passes with each turn: what is said and done in between does not count.
      let clockMs = performance.now();
      const fromMs = clockMs;
      bench.nowMs = () => {
        clockMs += 20;
        return clockMs;
      };
      await bench.pump(() => bench.lost.length === 1, 'given up');
      assert.equal(node!.told(NBD_CMD_BLOCKWIRE_MARK).length, 2);
      assert.ok(clockMs - fromMs < 1300, `${clockMs - fromMs} ms`);
    },
    { timeoutMs: 1000 },
  ));
