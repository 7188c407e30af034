/** The data path allocates no object per request: a million of them leave a worker's heap as it was. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type NodeProcess, run, startNode, temporaryDirectory } from './testing/node-process.ts';

const REQUESTS = 1_000_000;
const WARM_UP_REQUESTS = 200_000;
/** The smallest thing that V8 allocates: below it there is less than one allocation a request. */
const BYTES_PER_REQUEST_MAX = 16;
const GROWTH_BYTES_MAX = 2 * 2 ** 20;

async function load(node: NodeProcess, count: number): Promise<void> {
  const { code, stderr } = await run(
    'fio',
    [
      '--name=load',
      '--ioengine=nbd',
      `--uri=nbd://${node.nbd}/vol-a`,
      '--rw=randrw',
      '--bs=4k',
      '--iodepth=32',
      '--size=32m',
      '--io_size=1t',
      '--norandommap',
      `--number_ios=${count}`,
    ],
    { timeoutMs: 600_000 },
  );
  assert.equal(code, 0, stderr);
  // The worker samples its heap once a second.
  await sleep(1500);
}

test('a million requests grow no heap', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', 'vol-a=33554432']);
  const measure = async () => ({
    requests:
      (await node.metric('blockwire_node_read_requests_total')) +
      (await node.metric('blockwire_node_write_requests_total')),
    allocatedBytes: await node.metric('blockwire_node_heap_allocated_bytes_total'),
    usedBytes: await node.metric('blockwire_node_heap_used_bytes'),
  });
  await load(node, WARM_UP_REQUESTS);
  const before = await measure();
  await load(node, REQUESTS);
  const after = await measure();
  const requests = after.requests - before.requests;
  assert.ok(requests >= REQUESTS, `only ${requests} requests`);
  const perRequest = (after.allocatedBytes - before.allocatedBytes) / requests;
  const grown = after.usedBytes - before.usedBytes;
  t.diagnostic(
    `${requests} requests: ${perRequest.toFixed(2)} bytes allocated each, heap ${grown} bytes larger`,
  );
  assert.ok(perRequest < BYTES_PER_REQUEST_MAX, `${perRequest} bytes allocated per request`);
  assert.ok(grown < GROWTH_BYTES_MAX, `the heap grew by ${grown} bytes`);
});
