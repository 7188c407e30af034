import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { constants as osConstants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { KernelError } from './errors.ts';
import { allocateRegion, PAGE_SIZE_BYTES } from './memory.ts';
import { native } from './native.ts';
import { type CompletionHandler, Ring } from './ring.ts';
import { IoringOp, IoringSetup, Iosqe, MSG_WAITALL } from './uapi/io-uring.ts';

class Recorder implements CompletionHandler {
  readonly seen: { operation: number; data: number; result: number }[] = [];

  complete(operation: number, data: number, result: number): void {
    this.seen.push({ operation, data, result });
  }
}

function withRing(entries: number, body: (ring: Ring, recorder: Recorder, id: number) => void): void {
  const ring = new Ring({ entries });
  const recorder = new Recorder();
  try {
    body(ring, recorder, ring.addHandler(recorder));
  } finally {
    ring.close();
  }
}

/** More operations than the ring has entries, each completed once and in order. */
function goRound(entries: number, count: number): void {
  withRing(entries, (ring, recorder, id) => {
    for (let i = 0; i < count; i++) ring.nop(id, 0, i);
    while (recorder.seen.length < count) {
      ring.enter(1, 1000);
      assert.notEqual(ring.dispatch(), 0, 'completions stopped coming');
    }
    assert.deepEqual(
      recorder.seen.map(({ data }) => data),
      Array.from({ length: count }, (_, i) => i),
    );
  });
}

test('completions reach the handler with their operation and data', () => {
  withRing(8, (ring, recorder, id) => {
    ring.nop(id, 7, 0xffff_fffe);
    ring.nop(id, 255, 1);
    ring.enter(2, -1);
    assert.equal(ring.dispatch(), 2);
    assert.deepEqual(recorder.seen, [
      { operation: 7, data: 0xffff_fffe, result: 0 },
      { operation: 255, data: 1, result: 0 },
    ]);
  });
});

test('more SQEs than the ring has entries are submitted on the way', () => {
  goRound(4, 100);
});

test('a kernel that insists on the array of SQE numbers gets one', (t) => {
  const { ioUringSetup } = native;
  const refused = t.mock.method(native, 'ioUringSetup', (entries: number, params: Uint32Array) => {
    if ((params[2]! & IoringSetup.NO_SQARRAY) !== 0)
      throw new KernelError('io_uring_setup', osConstants.errno.EINVAL);
    return ioUringSetup(entries, params);
  });
  goRound(4, 10);
  assert.equal(refused.mock.callCount(), 2);
});

test('completions beyond the completion queue are kept by the kernel and delivered', () => {
  const ring = new Ring({ entries: 64, cqEntries: 64 });
  const recorder = new Recorder();
  const id = ring.addHandler(recorder);
  for (let round = 0; round < 4; round++) {
    for (let i = 0; i < 64; i++) ring.nop(id, round, i);
    ring.submit();
  }
  while (recorder.seen.length < 256) {
    ring.enter(1, 1000);
    assert.notEqual(ring.dispatch(), 0, 'completions were lost');
  }
  ring.close();
  assert.equal(new Set(recorder.seen.map(({ operation, data }) => operation * 64 + data)).size, 256);
});

test('a chain never spans two submissions, and one longer than the ring is refused', () => {
  withRing(4, (ring, recorder, id) => {
    ring.nop(id, 0, 0);
    ring.nop(id, 0, 1);
    ring.reserve(3);
    assert.equal(ring.pendingCount, 0);
    ring.enter(2, 1000);
    ring.dispatch();
    assert.equal(recorder.seen.length, 2);
    assert.throws(() => ring.reserve(5), RangeError);
  });
});

test('an unknown opcode completes with EINVAL and leaves the ring usable', () => {
  withRing(8, (ring, recorder, id) => {
    ring.prepare(250, 0, 0, -1, 0, 0, 0, 0, id, 1, 2);
    ring.nop(id, 2, 3);
    while (recorder.seen.length < 2) {
      ring.enter(1, 1000);
      ring.dispatch();
    }
    assert.deepEqual(recorder.seen[0], { operation: 1, data: 2, result: -22 });
    assert.deepEqual(recorder.seen[1], { operation: 2, data: 3, result: 0 });
  });
});

test('a failed link cancels the rest of its chain', () => {
  withRing(8, (ring, recorder, id) => {
    ring.prepare(IoringOp.READ, Iosqe.IO_LINK, 0, -1, 0, 0, 1, 0, id, 1, 0);
    ring.nop(id, 2, 0);
    while (recorder.seen.length < 2) {
      ring.enter(1, 1000);
      ring.dispatch();
    }
    assert.deepEqual(
      recorder.seen.map(({ result }) => result),
      [-9, -125],
    );
  });
});

test('a wait with a bound ends without a completion', () => {
  withRing(8, (ring, recorder) => {
    ring.enter(1, 20);
    assert.equal(ring.dispatch(), 0);
    assert.equal(recorder.seen.length, 0);
  });
});

test('file offsets above 4 GiB and memory addresses are written whole', () => {
  const directory = mkdtempSync(join(tmpdir(), 'blockwire-ring-'));
  const fd = openSync(join(directory, 'sparse'), constants.O_RDWR | constants.O_CREAT);
  const region = allocateRegion(8192);
  const offset = 5 * 2 ** 32 + 4096;
  try {
    withRing(8, (ring, recorder, id) => {
      region.bytes.fill(0xa5, 0, 4096);
      ring.prepare(IoringOp.WRITE, Iosqe.IO_LINK, 0, fd, offset, region.address, 4096, 0, id, 1, 0);
      ring.prepare(IoringOp.READ, 0, 0, fd, offset, region.address + 4096, 4096, 0, id, 2, 0);
      while (recorder.seen.length < 2) {
        ring.enter(1, 1000);
        ring.dispatch();
      }
      assert.deepEqual(
        recorder.seen.map(({ result }) => result),
        [4096, 4096],
      );
      assert.deepEqual(region.bytes.subarray(4096), region.bytes.subarray(0, 4096));
    });
    assert.throws(() => readFileSync(join(directory, 'missing')));
  } finally {
    closeSync(fd);
    region.release();
    rmSync(directory, { recursive: true });
  }
});

test('a registered buffer serves fixed reads and writes', () => {
  const [left, right] = native.socketPair();
  const region = allocateRegion(8192);
  try {
    withRing(8, (ring, recorder, id) => {
      ring.registerSparseBuffers(4);
      ring.registerBuffer(2, region.address, 8192);
      region.bytes.fill(0x5a, 0, 64);
      const at = ring.prepare(IoringOp.WRITE_FIXED, 0, 0, left, 0, region.address, 64, 0, id, 1, 0);
      ring.sqes[at + 10] = 2;
      ring.receive(right, region, 4096, 64, MSG_WAITALL, 0, id, 2, 0);
      while (recorder.seen.length < 2) {
        ring.enter(1, 1000);
        ring.dispatch();
      }
      assert.deepEqual(region.bytes.subarray(4096, 4160), region.bytes.subarray(0, 64));
    });
  } finally {
    native.close(left);
    native.close(right);
    region.release();
  }
});

test('a failed system call is a KernelError with the errno by name', () => {
  assert.throws(
    () => native.close(-1),
    (error) => error instanceof KernelError && error.code === 'EBADF' && error.syscall === 'close',
  );
});

test('released memory cannot be touched', () => {
  const region = allocateRegion(4096);
  region.release();
  region.release();
  assert.equal(region.bytes.length, 0);
});

test('a process ends cleanly with a ring open and operations in flight', () => {
  const script = `
    import { Ring } from ${JSON.stringify(new URL('./ring.ts', import.meta.url).href)};
    import { native } from ${JSON.stringify(new URL('./native.ts', import.meta.url).href)};
    import { allocateRegion } from ${JSON.stringify(new URL('./memory.ts', import.meta.url).href)};
    const ring = new Ring({ entries: 8 });
    const [left] = native.socketPair();
    ring.receive(left, allocateRegion(4096), 0, 4096, 0, 0, 0, 0, 0);
    ring.submit();
    process.stdout.write('ready');
  `;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], { timeout: 20_000 });
  assert.equal(child.stdout.toString(), 'ready', child.stderr.toString());
  assert.equal(child.signal, null);
  assert.equal(child.status, 0);
});

test('a wait that may poll burns the time until its completion comes, and sleeps when none does', () => {
  const ring = new Ring({ entries: 8, clock: true });
  const timespec = allocateRegion(PAGE_SIZE_BYTES);
  const cpuUs = (): number => Object.values(process.cpuUsage()).reduce((sum, us) => sum + us);
  const results: number[] = [];
  const handler = ring.addHandler({ complete: (_operation, _data, result) => results.push(result) });
  try {
    timespec.view.setBigInt64(8, 20_000_000n, true);
    const before = cpuUs();
    ring.prepare(IoringOp.TIMEOUT, 0, 0, -1, 0, timespec.address, 1, 0, handler, 0, 0);
    ring.enterUs(1, -1, 5_000_000);
    assert.ok(cpuUs() - before > 2000, `${cpuUs() - before} us`);
    assert.ok(ring.waitedUs >= 19_000 && ring.waitedUs < 5_000_000, `${ring.waitedUs}`);
    assert.equal(ring.dispatch(), 1);
    assert.deepEqual(results, [-osConstants.errno.ETIME]);
    assert.equal(ring.enterCount, 2, 'one to submit, one to fetch the completion');

    ring.enterUs(1, 30_000, 1000);
    assert.ok(ring.waitedUs >= 30_000, `${ring.waitedUs}`);
    assert.equal(ring.dispatch(), 0);
    assert.equal(ring.enterCount, 4);
  } finally {
    ring.close();
    timespec.release();
  }
});

test('the clock is the time of the last return from enter', () => {
  const ring = new Ring({ entries: 8, clock: true });
  const nowUs = (): number => Number(process.hrtime.bigint() / 1000n);
  try {
    assert.equal(ring.clock[0], 0);
    const before = nowUs();
    ring.enter(1, 20);
    const seen = ring.clock[0]!;
    assert.ok(seen >= before + 19_000 && seen <= nowUs() + 1, `${before} ${seen}`);
    ring.enter(0, 0);
    assert.ok(ring.clock[0]! >= seen);
  } finally {
    ring.close();
  }
  // The page is gone: entering another ring of this thread must not touch it.
  withRing(8, (other) => {
    other.enter(0, 0);
    assert.equal(other.clock[0], 0);
  });
});
