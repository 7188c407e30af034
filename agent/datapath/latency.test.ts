import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createCounters, openCounters, openLatency } from './counters.ts';
import {
  DEVICE_LATENCY,
  LATENCY_BUCKETS,
  LatencyRecorder,
  latencyBucket,
  latencyBucketEndUs,
  readLatency,
  replicaLatency,
} from './latency.ts';
import { Operation, RequestTable } from './request.ts';

test('every microsecond falls into the bucket that ends behind it', () => {
  let previous = -1;
  for (let us = 0; us < 2 ** 27; us = us < 4096 ? us + 1 : Math.floor(us * 1.01)) {
    const bucket = latencyBucket(us);
    assert.ok(bucket >= previous && bucket < LATENCY_BUCKETS, `${us} us: bucket ${bucket}`);
    assert.ok(us < latencyBucketEndUs(bucket), `${us} us: bucket ${bucket}`);
    if (bucket > 0) assert.ok(us >= latencyBucketEndUs(bucket - 1), `${us} us: bucket ${bucket}`);
    previous = bucket;
  }
  assert.equal(latencyBucketEndUs(LATENCY_BUCKETS - 1), 2 ** 27);
});

test('bucket ends are powers of two at the end of each octave', () => {
  for (let octave = 2; octave <= 26; octave++)
    assert.equal(latencyBucketEndUs(octave * 4 - 1), 2 ** (octave + 1));
});

test('queues are added up, sources and kinds kept apart, counters untouched', () => {
  const shared = [createCounters(), createCounters()];
  const requests = new RequestTable(4);
  const clock = new Float64Array(1);
  const recorders = (queue: number) =>
    [DEVICE_LATENCY, replicaLatency(7)].map(
      (source) => new LatencyRecorder({ numbers: openLatency(shared[queue]!), source, clock, requests }),
    );
  const record = (recorder: LatencyRecorder, operation: number, us: number): void => {
    requests.operation[3] = operation;
    clock[0] = 1e12;
    recorder.begin(3);
    clock[0] += us;
    recorder.end(3);
  };
  for (const queue of [0, 1]) {
    const [device, replica] = recorders(queue);
    record(device!, Operation.WRITE, 100);
    record(device!, Operation.WRITE_ZEROES, 1e12);
    record(replica!, Operation.READ, 7);
  }
  const numbers = shared.map(openLatency);
  const seen = (source: number, kind: 'read' | 'write' | 'flush' | 'trim') => {
    const { count, sumUs, buckets } = readLatency(numbers, source, kind);
    return { count, sumUs, at: [...buckets].flatMap((value, bucket) => (value > 0 ? [bucket, value] : [])) };
  };
  assert.deepEqual(seen(DEVICE_LATENCY, 'write'), { count: 2, sumUs: 200, at: [latencyBucket(100), 2] });
  assert.deepEqual(seen(DEVICE_LATENCY, 'trim'), { count: 2, sumUs: 2e12, at: [LATENCY_BUCKETS - 1, 2] });
  assert.deepEqual(seen(replicaLatency(7), 'read'), { count: 2, sumUs: 14, at: [7, 2] });
  for (const kind of ['read', 'flush'] as const) assert.equal(seen(DEVICE_LATENCY, kind).count, 0);
  assert.equal(seen(replicaLatency(6), 'read').count, 0);
  assert.ok(shared.every((memory) => openCounters(memory).every((value) => value === 0)));
});
