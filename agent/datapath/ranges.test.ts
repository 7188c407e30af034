import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { Mirror, type MirrorHost, type ReplicaLink } from './mirror.ts';
import { createRanges, SharedRanges } from './ranges.ts';
import { Operation, RequestTable } from './request.ts';

const DEPTH = 4;

class Link implements ReplicaLink {
  readonly inFlight: number[] = [];
  get inFlightCount(): number {
    return this.inFlight.length;
  }
  submit(tag: number): void {
    this.inFlight.push(tag);
  }
  close(): void {}
}

/** Several queues of one device over one replica, in one thread: a wake is taken down, and acted on when the test says so. */
class Device {
  readonly queues: { requests: RequestTable; link: Link; mirror: Mirror; done: [number, number][] }[] = [];
  readonly woken = new Set<number>();

  constructor(queueCount: number) {
    const shared = createRanges(queueCount, DEPTH);
    for (let queueId = 0; queueId < queueCount; queueId++) {
      const requests = new RequestTable(DEPTH);
      const link = new Link();
      const done: [number, number][] = [];
      const host: MirrorHost = {
        complete: (tag, result) => done.push([tag, result]),
        reportLost: () => assert.fail('nothing was lost'),
      };
      const ranges = new SharedRanges({
        shared,
        queueId,
        queueCount,
        queueDepth: DEPTH,
        wake: (target) => this.woken.add(target),
      });
      const mirror = new Mirror({ requests, links: [link], host, inSync: 1, ranges });
      mirror.linkUp(0);
      this.queues.push({ requests, link, mirror, done });
    }
  }

  start(
    queueId: number,
    tag: number,
    offset: number,
    length: number,
    operation: number = Operation.WRITE,
  ): void {
    const { requests, mirror } = this.queues[queueId]!;
    requests.operation[tag] = operation;
    requests.offsetBytes[tag] = offset;
    requests.lengthBytes[tag] = length;
    mirror.start(tag);
  }

  answer(queueId: number, tag: number): void {
    const { link, mirror } = this.queues[queueId]!;
    const at = link.inFlight.indexOf(tag);
    assert.ok(at >= 0, `queue ${queueId}: tag ${tag} is not in flight`);
    link.inFlight.splice(at, 1);
    mirror.answered(0, tag, 0);
  }

  deliverWakes(): void {
    const woken = [...this.woken];
    this.woken.clear();
    for (const queueId of woken) this.queues[queueId]!.mirror.retryWaiting();
  }

  inFlight(queueId: number): readonly number[] {
    return this.queues[queueId]!.link.inFlight;
  }
}

test('writes of two queues wait for each other only where they overlap', () => {
  const device = new Device(2);
  device.start(0, 0, 0, 4096);
  device.start(1, 0, 4096, 4096);
  device.start(1, 1, 2048, 1024, Operation.TRIM);
  assert.deepEqual(device.inFlight(1), [0]);
  device.answer(0, 0);
  assert.deepEqual([...device.woken], [1]);
  device.deliverWakes();
  assert.deepEqual(device.inFlight(1), [0, 1]);
});

test('nobody is woken who does not wait', () => {
  const device = new Device(3);
  device.start(0, 0, 0, 4096);
  device.start(1, 0, 8192, 4096);
  device.answer(0, 0);
  assert.equal(device.woken.size, 0);
});

test('a write that waits is not passed over by later ones', () => {
  const device = new Device(3);
  device.start(0, 0, 0, 4096);
  device.start(1, 0, 0, 8192);
  device.start(2, 0, 4096, 4096);
  assert.deepEqual(device.inFlight(2), [], 'it overlaps the one that waits in queue 1');
  device.answer(0, 0);
  device.deliverWakes();
  assert.deepEqual([device.inFlight(1), device.inFlight(2)], [[0], []]);
  device.answer(1, 0);
  device.deliverWakes();
  assert.deepEqual(device.inFlight(2), [0]);
});

test('flushes wait for nobody, reads for writes of other queues and not for reads', () => {
  const device = new Device(3);
  device.start(0, 0, 0, 4096);
  device.start(1, 0, 0, 4096, Operation.READ);
  device.start(1, 1, 0, 0, Operation.FLUSH);
  device.start(1, 2, 8192, 4096, Operation.READ);
  device.start(2, 2, 8192, 4096, Operation.READ);
  assert.deepEqual([device.inFlight(1), device.inFlight(2)], [[1, 2], [2]]);
  device.answer(0, 0);
  assert.deepEqual([...device.woken], [1]);
  device.deliverWakes();
  assert.deepEqual(device.inFlight(1), [1, 2, 0]);
});

test('a write waits for reads of other queues, and later reads wait for it', () => {
  const device = new Device(3);
  device.start(0, 0, 0, 4096, Operation.READ);
  device.start(1, 0, 0, 8192);
  device.start(2, 0, 4096, 4096, Operation.READ);
  assert.deepEqual([device.inFlight(1), device.inFlight(2)], [[], []]);
  device.answer(0, 0);
  device.deliverWakes();
  assert.deepEqual([device.inFlight(1), device.inFlight(2)], [[0], []]);
  device.answer(1, 0);
  device.deliverWakes();
  assert.deepEqual(device.inFlight(2), [0]);
});

test('what one queue holds back keeps no read of another one waiting', () => {
  const device = new Device(3);
  device.start(0, 0, 0, 4096, Operation.READ);
  device.start(1, 0, 0, 4096);
  device.queues[1]!.mirror.holdWrites();
  device.start(2, 0, 0, 4096, Operation.READ);
  assert.deepEqual([device.inFlight(1), device.inFlight(2)], [[], [0]]);
  device.answer(0, 0);
  device.answer(2, 0);
  device.deliverWakes();
  assert.deepEqual(device.inFlight(1), []);
  device.queues[1]!.mirror.releaseWrites();
  assert.deepEqual(device.inFlight(1), [0]);
});

test('writes that wait for another queue fail with everything else, and let go of their place', () => {
  const device = new Device(3);
  device.start(0, 0, 0, 4096);
  device.start(1, 0, 0, 4096);
  device.start(2, 0, 0, 4096);
  device.queues[1]!.mirror.failEverything();
  assert.deepEqual(device.queues[1]!.done, [[0, -5]]);
  device.answer(0, 0);
  device.deliverWakes();
  assert.deepEqual(device.inFlight(2), [0]);
});

test('random requests of four queues never overlap in flight unless they read, and all of them end', () => {
  let seed = 0x1234;
  const random = (bound: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return (seed >>> 8) % bound;
  };
  const device = new Device(4);
  const busy = device.queues.map(() => new Set<number>());
  const seen = device.queues.map(() => 0);
  let started = 0;
  const ended = (): number => device.queues.reduce((sum, { done }) => sum + done.length, 0);
  for (let step = 0; step < 20_000; step++) {
    const queueId = random(4);
    const { link } = device.queues[queueId]!;
    const tag = random(DEPTH);
    if (random(2) === 0 && started < 5000 && !busy[queueId]!.has(tag)) {
      busy[queueId]!.add(tag);
      started++;
      const operation = random(3) === 0 ? Operation.READ : Operation.WRITE;
      device.start(queueId, tag, random(16) * 512, (1 + random(8)) * 512, operation);
    } else if (link.inFlight.length > 0) {
      device.answer(queueId, link.inFlight[random(link.inFlight.length)]!);
    }
    if (random(3) === 0) device.deliverWakes();
    for (const [id, queue] of device.queues.entries()) {
      for (; seen[id]! < queue.done.length; seen[id]!++) busy[id]!.delete(queue.done[seen[id]!]![0]);
    }
    const ranges = device.queues.flatMap((queue) =>
      queue.link.inFlight.map((at) => {
        const begin = queue.requests.offsetBytes[at]!;
        const end = begin + queue.requests.lengthBytes[at]!;
        return { operation: queue.requests.operation[at]!, begin, end };
      }),
    );
    for (const [i, one] of ranges.entries()) {
      for (const other of ranges.slice(i + 1)) {
        const bothRead = one.operation === Operation.READ && other.operation === Operation.READ;
        const apart = one.begin >= other.end || other.begin >= one.end;
        assert.ok(bothRead || apart, `step ${step}: overlap in flight`);
      }
    }
  }
  for (let left = 100_000; ended() < started; left--) {
    assert.ok(left > 0, `${started - ended()} requests never end`);
    device.deliverWakes();
    for (const [queueId, { link }] of device.queues.entries()) {
      if (link.inFlight.length > 0) device.answer(queueId, link.inFlight[0]!);
    }
  }
});

test('threads that claim the same range at once never hold it together', async () => {
  const queueCount = 3;
  const rounds = 3000;
  const shared = createRanges(queueCount, 1);
  const state = new SharedArrayBuffer(4 * (2 + queueCount));
  const source = `
    const { workerData } = require('node:worker_threads');
    const { shared, state, queueId, queueCount, rounds, module } = workerData;
    import(module).then(({ SharedRanges }) => {
      const words = new Int32Array(state);
      const wake = (target) => { Atomics.add(words, 2 + target, 1); Atomics.notify(words, 2 + target); };
      const ranges = new SharedRanges({ shared, queueId, queueCount, queueDepth: 1, wake });
      for (let i = 0; i < rounds; i++) {
        for (;;) {
          const seen = Atomics.load(words, 2 + queueId);
          if (ranges.claim(0, 0, 4096, true)) break;
          Atomics.wait(words, 2 + queueId, seen);
        }
        if (Atomics.add(words, 0, 1) !== 0) Atomics.add(words, 1, 1);
        Atomics.sub(words, 0, 1);
        ranges.release(0);
      }
    });`;
  const module = new URL('./ranges.ts', import.meta.url).href;
  const exits = Array.from({ length: queueCount }, (_, queueId) => {
    const worker = new Worker(source, {
      eval: true,
      workerData: { shared, state, queueId, queueCount, rounds, module },
    });
    return new Promise((resolve, reject) => {
      worker.once('error', reject);
      worker.once('exit', resolve);
    });
  });
  assert.deepEqual(await Promise.all(exits), [0, 0, 0]);
  assert.equal(new Int32Array(state)[1], 0, 'two threads held the range together');
});
