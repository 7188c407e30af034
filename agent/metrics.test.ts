import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Registry } from 'prom-client';
import { CounterIndex, createCounters, openCounters, openLatency } from './datapath/counters.ts';
import { DEVICE_LATENCY, LatencyRecorder, replicaLatency } from './datapath/latency.ts';
import { Operation, RequestTable } from './datapath/request.ts';
import { type MeteredDevice, registerAgentMetrics } from './metrics.ts';

function device(): MeteredDevice {
  return {
    path: '/dev/ublkb0',
    datapath: 'fused',
    io: {
      volumeId: 'vol-1',
      ioState: 'waiting',
      replicas: [
        { nodeId: 'b', state: 'inSync', slot: 1, connected: true },
        { nodeId: 'a', state: 'rebuilding', slot: 0, connected: true },
        { nodeId: 'c', state: 'stale', slot: null, connected: false },
      ],
      checkpointCount: 5,
      isHoldingWrites: true,
      queueMemories: [createCounters(), createCounters()],
    },
  };
}

function record(memory: SharedArrayBuffer, source: number, operation: number, us: number): void {
  const clock = new Float64Array(1);
  const requests = new RequestTable(1);
  requests.operation[0] = operation;
  const recorder = new LatencyRecorder({ numbers: openLatency(memory), source, clock, requests });
  recorder.begin(0);
  clock[0] = us;
  recorder.end(0);
}

async function scrape(devices: readonly MeteredDevice[]): Promise<string[]> {
  const registry = new Registry();
  registerAgentMetrics(registry, () => devices);
  return (await registry.metrics()).split('\n');
}

test('counters are told apart by queue', async () => {
  const one = device();
  openCounters(one.io.queueMemories[1]!)[CounterIndex.writeOps] = 7;
  openCounters(one.io.queueMemories[0]!)[CounterIndex.zeroCopyCopied] = 3;
  const lines = await scrape([one]);
  const labels = 'volume="vol-1",device="/dev/ublkb0"';
  assert.ok(
    lines.includes(`blockwire_agent_requests_total{${labels},queue="1",operation="write"} 7`),
    lines.join('\n'),
  );
  assert.ok(lines.includes(`blockwire_agent_zero_copy_sends_copied_total{${labels},queue="0"} 3`));
  assert.ok(lines.includes(`blockwire_agent_device_info{${labels},datapath="fused"} 1`));
});

test('histograms are cumulative, in seconds, over all queues', async () => {
  const one = device();
  record(one.io.queueMemories[0]!, DEVICE_LATENCY, Operation.READ, 15);
  record(one.io.queueMemories[1]!, DEVICE_LATENCY, Operation.READ, 16);
  record(one.io.queueMemories[1]!, DEVICE_LATENCY, Operation.READ, 60e6);
  record(one.io.queueMemories[0]!, replicaLatency(1), Operation.WRITE, 1000);
  const lines = await scrape([one]);
  const of = (name: string, labels: string): string[] => {
    const found = lines.filter((line) => line.startsWith(`${name}_`) && line.includes(labels));
    return found.map((line) => `${/le="([^"]+)"/.exec(line)?.[1] ?? ''} ${line.split(' ').at(-1)}`);
  };
  const read = of('blockwire_agent_request_duration_seconds', 'operation="read"');
  assert.deepEqual(read.slice(0, 3), ['0.000016 1', '0.000032 2', '0.000064 2']);
  assert.deepEqual(read.slice(-4), ['16.777216 2', '+Inf 3', ' 60.000031', ' 3']);
  const write = of('blockwire_agent_replica_request_duration_seconds', 'node="b",operation="write"');
  assert.ok(write.includes('0.000512 0') && write.includes('0.001024 1'), write.join('\n'));
  const untouched = of('blockwire_agent_replica_request_duration_seconds', 'node="a",operation="write"');
  assert.ok(untouched.every((line) => line.endsWith(' 0')));
});

test('without devices there are no series', async () => {
  assert.deepEqual(
    (await scrape([])).filter((line) => line !== '' && !line.startsWith('#')),
    [],
  );
});

test('of the states of I/O one holds', async () => {
  const lines = (await scrape([device()])).filter((line) => line.startsWith('blockwire_agent_io_state{'));
  assert.deepEqual(
    lines.map((line) => /state="(\w+)"} (\d)/.exec(line)!.slice(1).join(' ')),
    ['ok 0', 'waiting 1', 'failing 0'],
  );
});

test('replicas by state, checkpoints and held writes', async () => {
  const lines = await scrape([device()]);
  const labels = 'volume="vol-1",device="/dev/ublkb0"';
  for (const line of [
    'blockwire_agent_replica_connected{volume="vol-1",node="a",state="rebuilding"} 1',
    'blockwire_agent_replica_connected{volume="vol-1",node="c",state="stale"} 0',
    `blockwire_agent_replicas{${labels},state="inSync"} 1`,
    `blockwire_agent_replicas{${labels},state="stale"} 1`,
    `blockwire_agent_checkpoints_total{${labels}} 5`,
    `blockwire_agent_writes_held{${labels}} 1`,
  ])
    assert.ok(lines.includes(line), line);
});
