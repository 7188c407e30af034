/** The data path allocates no object per request: a million of them leave a worker's heap as it was. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type NodeProcess, run, startNode, temporaryDirectory } from './testing/node-process.ts';

const WARM_UP_REQUESTS = 300_000;
const GIB = 2 ** 30;
/** The smallest thing that V8 allocates has 16. What remains is of ticks and of this test's own questions. */
const BYTES_PER_REQUEST_MAX = 4;
const GROWTH_BYTES_MAX = 2 * 2 ** 20;
/** None is expected; one may be due to what was allocated before. */
const COLLECTIONS_MAX = 1;

async function load(node: NodeProcess, count: number, offset: number): Promise<void> {
  const { code, stderr } = await run(
    'fio',
    [
      '--name=load',
      '--ioengine=nbd',
      `--uri=nbd://${node.nbd}/vol-a`,
      '--rw=randrw',
      '--bs=4k',
      '--iodepth=32',
      `--offset=${offset}`,
      '--size=32m',
      '--io_size=1t',
      '--norandommap',
      `--number_ios=${count}`,
    ],
    { timeoutMs: 600_000 },
  );
  assert.equal(code, 0, stderr);
  // The worker samples its heap once a second.
  await sleep(2500);
}

async function measure(node: NodeProcess) {
  return {
    requests:
      (await node.metric('blockwire_node_read_requests_total')) +
      (await node.metric('blockwire_node_write_requests_total')),
    allocatedBytes: await node.metric('blockwire_node_heap_allocated_bytes_total'),
    usedBytes: await node.metric('blockwire_node_heap_used_bytes'),
    collections: await node.metric('blockwire_node_gc_runs_total'),
    collectingS: await node.metric('blockwire_node_gc_seconds_total'),
  };
}

for (const { name, sizeBytes, offset, count } of [
  { name: 'a million requests', sizeBytes: 32 * 2 ** 20, offset: 0, count: 1_000_000 },
  // Numbers of 2^31 and more do not fit a word of V8's: each that passes a call is allocated.
  { name: 'requests beyond 4 GiB', sizeBytes: 6 * GIB, offset: 5 * GIB, count: 500_000 },
]) {
  test(`${name} grow no heap and cause no garbage collection`, async (t) => {
    const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${sizeBytes}`]);
    await load(node, WARM_UP_REQUESTS, offset);
    const before = await measure(node);
    await load(node, count, offset);
    const after = await measure(node);
    const requests = after.requests - before.requests;
    assert.ok(requests >= count, `only ${requests} requests`);
    const perRequest = (after.allocatedBytes - before.allocatedBytes) / requests;
    const grown = after.usedBytes - before.usedBytes;
    const collections = after.collections - before.collections;
    const collectingMs = 1000 * (after.collectingS - before.collectingS);
    t.diagnostic(
      `${requests} requests: ${perRequest.toFixed(2)} bytes allocated each, heap ${grown} bytes larger, ` +
        `${collections} collections in ${collectingMs.toFixed(1)} ms`,
    );
    assert.ok(perRequest < BYTES_PER_REQUEST_MAX, `${perRequest} bytes allocated per request`);
    assert.ok(grown < GROWTH_BYTES_MAX, `the heap grew by ${grown} bytes`);
    assert.ok(collections <= COLLECTIONS_MAX, `${collections} collections`);
  });
}
