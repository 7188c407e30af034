/** Links against a real NBD server (nbdkit) and against servers that break the protocol, on loopback, without ublk. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { after, before, test } from 'node:test';
import { native } from '@blockwire/native/native.ts';
import { listenTcp } from '@blockwire/native/sockets.ts';
import { DEPTH, handshake, LADDER, LinkBench, SIZE, STRIDE, startLiar } from '../testing/link-bench.ts';
import { readLatency, replicaLatency } from './latency.ts';
import type { DatapathLadder } from './messages.ts';
import { Operation } from './request.ts';
import { SpliceTransmitter } from './splice-transmit.ts';

const servers: ChildProcess[] = [];

async function startNbdkit(): Promise<{ port: number; process: ChildProcess }> {
  // A port that was free a moment ago.
  const { fd, port } = listenTcp({ address: '127.0.0.1', port: 0 }, 1);
  native.close(fd);
  const parameters = ['-f', '-i', '127.0.0.1', '-p', String(port), 'memory', String(SIZE)];
  const child = spawn('nbdkit', parameters, { stdio: 'ignore' });
  servers.push(child);
  return { port, process: child };
}

let primary: { port: number; process: ChildProcess };
before(async () => {
  primary = await startNbdkit();
});
after(() => {
  for (const child of servers) child.kill('SIGKILL');
});

test('what was written is read back, at every size, many at once', async () => {
  const bench = new LinkBench([primary.port]);
  const sizes = [512, 4096, 4608, 65536];
  for (let tag = 0; tag < DEPTH; tag++) {
    const size = sizes[tag % sizes.length]!;
    bench.buffer(tag).fill(tag + 1, 0, size);
    bench.start(tag, Operation.WRITE, tag * STRIDE, size);
  }
  await bench.pump(() => bench.results.size === DEPTH, 'writes');
  for (let tag = 0; tag < DEPTH; tag++) assert.equal(bench.results.get(tag), sizes[tag % sizes.length]);
  bench.results.clear();
  bench.memory.bytes.fill(0);
  for (let tag = 0; tag < DEPTH; tag++) {
    bench.start(tag, Operation.READ, tag * STRIDE, sizes[tag % sizes.length]!);
  }
  await bench.pump(() => bench.results.size === DEPTH, 'reads');
  for (let tag = 0; tag < DEPTH; tag++) {
    const size = sizes[tag % sizes.length]!;
    assert.ok(
      bench
        .buffer(tag)
        .subarray(0, size)
        .every((byte) => byte === tag + 1),
      `tag ${tag}`,
    );
    assert.equal(bench.buffer(tag)[size] ?? 0, 0, 'nothing beyond the request is touched');
  }
  for (const kind of ['read', 'write'] as const) {
    const { count, sumUs } = readLatency([bench.latency], replicaLatency(0), kind);
    assert.equal(count, DEPTH);
    // An answer never comes with the batch in which its request went out.
    assert.ok(sumUs > 0 && sumUs < 60e6, `${sumUs} us`);
  }
  await bench.close();
});

test('flush, trim and write zeroes; an error of the server is the request’s error', async () => {
  const bench = new LinkBench([primary.port]);
  bench.buffer(0).fill(0xee, 0, 4096);
  bench.start(0, Operation.WRITE, 0, 4096);
  await bench.pump(() => bench.results.has(0), 'write');
  bench.start(1, Operation.FLUSH, 0, 0);
  bench.start(2, Operation.TRIM, STRIDE, STRIDE);
  bench.start(3, Operation.WRITE_ZEROES, 0, 4096);
  bench.start(4, Operation.READ, SIZE, 4096);
  await bench.pump(() => bench.results.size === 5, 'others');
  assert.deepEqual(
    [1, 2, 3].map((tag) => bench.results.get(tag)),
    [0, 0, 0],
  );
  assert.equal(bench.results.get(4), -5);
  bench.results.clear();
  bench.start(0, Operation.READ, 0, 4096);
  await bench.pump(() => bench.results.has(0), 'read');
  assert.ok(
    bench
      .buffer(0)
      .subarray(0, 4096)
      .every((byte) => byte === 0),
  );
  await bench.close();
});

test('a killed server is reported, its reads move on, its writes end with the verdict', async () => {
  const doomed = await startNbdkit();
  const bench = new LinkBench([primary.port, doomed.port]);
  await bench.pump(() => bench.links.every((link) => link.up), 'both up');
  doomed.process.kill('SIGKILL');
  await new Promise((resolve) => doomed.process.once('exit', resolve));
  for (let tag = 0; tag < 8; tag++) {
    bench.start(tag, tag % 2 === 0 ? Operation.WRITE : Operation.READ, tag * STRIDE, 4096);
  }
  await bench.pump(
    () => bench.lost.length === 1 && bench.results.size === 4,
    'reads answered, loss reported',
  );
  bench.mirror.membership(0b01);
  await bench.pump(() => bench.results.size === 8, 'writes after the verdict');
  for (const result of bench.results.values()) assert.equal(result, 4096);
  await bench.close();
});

test('the last replica is waited for and served again when it is back', async () => {
  const { fd, port } = listenTcp({ address: '127.0.0.1', port: 0 }, 1);
  native.close(fd);
  const bench = new LinkBench([port]);
  bench.buffer(0).fill(0x77, 0, 4096);
  bench.start(0, Operation.WRITE, 0, 4096);
  await bench.pump(() => bench.changes.some(({ up }) => !up), 'refused');
  assert.match(bench.changes[0]!.reason, /ECONNREFUSED/);
  assert.deepEqual(bench.lost, []);
  const child = spawn('nbdkit', ['-f', '-i', '127.0.0.1', '-p', String(port), 'memory', String(SIZE)], {
    stdio: 'ignore',
  });
  servers.push(child);
  await bench.pump(() => bench.results.size === 1, 'written after the return');
  assert.equal(bench.results.get(0), 4096);
  await bench.close();
});

test('a chain whose zero-copy send fails ends as a whole, and the link comes back', async () => {
  // Nothing is registered: sending pages fails in mid-chain, with parts before and behind.
  const ladder: DatapathLadder = { ...LADDER, send: 'zc', zeroCopyBytesMin: 0 };
  const bench = new LinkBench([primary.port], { ladder, ownBytesMax: 4096 });
  await bench.pump(() => bench.links[0]!.up, 'up');
  const ups = (): number => bench.changes.filter(({ up }) => up).length;
  for (let tag = 0; tag < 6; tag++) {
    bench.start(tag, Operation.WRITE, tag * STRIDE, tag % 2 === 0 ? 4096 : STRIDE);
  }
  // Each time the link is back, what is not answered is sent again, and fails again.
  await bench.pump(() => ups() >= 3, 'down and up again');
  const down = bench.changes.find(({ up }) => !up)!;
  assert.match(down.reason, /^send: (EFAULT|EINVAL)$/);
  assert.equal([1, 3, 5].filter((tag) => bench.results.has(tag)).length, 0);
  bench.mirror.failEverything();
  await bench.pump(() => bench.results.size === 6, 'all of them end');
  await bench.close();
});

test('writes and reads of own memory go by reference through a pipe', async () => {
  const ladder: DatapathLadder = { ...LADDER, smallBytesMax: 0 };
  const bench = new LinkBench([primary.port], {
    ladder,
    makeTransmit: (options) => new SpliceTransmitter(options),
  });
  for (let tag = 0; tag < DEPTH; tag++) {
    bench.buffer(tag).fill(0x80 + tag);
    bench.start(tag, Operation.WRITE, tag * STRIDE, tag % 3 === 0 ? 512 : STRIDE);
  }
  await bench.pump(() => bench.results.size === DEPTH, 'writes');
  bench.results.clear();
  bench.memory.bytes.fill(0);
  for (let tag = 0; tag < DEPTH; tag++) {
    bench.start(tag, Operation.READ, tag * STRIDE, tag % 3 === 0 ? 512 : STRIDE);
  }
  await bench.pump(() => bench.results.size === DEPTH, 'reads');
  for (let tag = 0; tag < DEPTH; tag++) {
    const size = tag % 3 === 0 ? 512 : STRIDE;
    const read = bench.buffer(tag).subarray(0, size);
    assert.ok(
      read.every((byte) => byte === 0x80 + tag),
      `tag ${tag}`,
    );
  }
  await bench.close();
});

function allStopped(pid: number): boolean {
  const tasks = `/proc/${pid}/task`;
  return readdirSync(tasks).every((task) => /\) T /.test(readFileSync(`${tasks}/${task}/stat`, 'utf8')));
}

test('a server that stops reading does not stop the others, and what is left goes when it reads again', async () => {
  const child = await startNbdkit();
  const ladder: DatapathLadder = { ...LADDER, smallBytesMax: 0 };
  const bench = new LinkBench([child.port], {
    timeoutMs: 20_000,
    ladder,
    makeTransmit: (options) => new SpliceTransmitter(options),
  });
  await bench.pump(() => bench.links[0]!.up, 'up');
  child.process.kill('SIGSTOP');
  // A signal is delivered in its own time: until then the server's threads go on.
  await bench.pump(() => allStopped(child.process.pid!), 'stopped');
  // More than a socket's buffers hold at first.
  let done = 0;
  for (let round = 0; round < 8; round++) {
    bench.results.clear();
    for (let tag = 0; tag < DEPTH; tag++) bench.start(tag, Operation.WRITE, tag * STRIDE, STRIDE);
    const deadlineMs = performance.now() + (round === 0 ? 300 : 0);
    await bench.pump(() => performance.now() > deadlineMs, 'nothing');
    if (round === 0) {
      assert.equal(bench.results.size, 0);
      child.process.kill('SIGCONT');
    }
    await bench.pump(() => bench.results.size === DEPTH, 'writes');
    done += bench.results.size;
  }
  assert.equal(done, 8 * DEPTH);
  await bench.close();
});

const lies: [name: string, script: (socket: Socket) => void, reason: RegExp][] = [
  ['is no NBD server', (socket) => socket.write(Buffer.alloc(64, 0x41)), /no NBD server/],
  ['hangs up at once', (socket) => socket.destroy(), /closed by the peer|ECONNRESET/],
  [
    'answers what was not asked',
    (socket) =>
      handshake(socket, () => {
        const reply = Buffer.alloc(16);
        reply.writeUInt32BE(0x6744_6698);
        reply.writeUInt32BE(999, 12);
        socket.write(reply);
      }),
    /reply to nothing/,
  ],
  [
    'replies with a wrong magic',
    (socket) =>
      handshake(socket, () => {
        socket.write(Buffer.alloc(16, 0x13));
      }),
    /reply to nothing/,
  ],
  [
    'hangs up in mid-payload',
    (socket) =>
      handshake(socket, (request) => {
        const reply = Buffer.alloc(16 + 100);
        reply.writeUInt32BE(0x6744_6698);
        request.copy(reply, 8, 8, 16);
        socket.end(reply);
      }),
    /cut short|closed by the peer|ECONNRESET/,
  ],
  ['never answers a request', (socket) => handshake(socket, () => {}), /no answer for/],
  ['never says a word', () => {}, /no answer for/],
];

for (const [name, script, reason] of lies) {
  test(`a server that ${name} breaks its link, not the agent`, async () => {
    const { port, server } = await startLiar(script);
    const bench = new LinkBench([port, primary.port], { timeoutMs: 300 });
    await bench.pump(() => bench.links[1]!.up, 'the good one is up');
    await bench.pump(() => bench.links[0]!.up || bench.changes.some(({ up }) => !up), 'the liar is met');
    // Least loaded first: the liar gets its share of the reads, and they are answered by the good one.
    for (let tag = 0; tag < 4; tag++) bench.start(tag, Operation.READ, tag * STRIDE, 4096);
    await bench.pump(() => bench.results.size === 4 && bench.changes.some(({ up }) => !up), 'reads');
    for (const result of bench.results.values()) assert.equal(result, 4096);
    assert.match(bench.changes.find(({ up }) => !up)!.reason, reason);
    await bench.close();
    server.close();
  });
}
