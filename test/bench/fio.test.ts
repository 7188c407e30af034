import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fioArguments, job, parseFio } from './fio.ts';

const report = (error: number, iops: number): string =>
  `note: something\n${JSON.stringify({
    jobs: [
      {
        error,
        read: {
          iops,
          bw_bytes: iops * 4096,
          clat_ns: { percentile: { '50.000000': 12_000, '99.000000': 90_500 } },
        },
      },
    ],
  })}`;

test('a report becomes rates and microseconds', () => {
  assert.deepEqual(parseFio(report(0, 1000), 'randread'), {
    iops: 1000,
    bytesPerSecond: 4_096_000,
    p50Us: 12,
    p99Us: 90.5,
  });
});

test('an error, an idle run, the other direction and rubbish are refused', () => {
  assert.throws(() => parseFio(report(5, 1000), 'randread'), /error 5/);
  assert.throws(() => parseFio(report(0, 0), 'randread'), /no I\/O/);
  assert.throws(() => parseFio(report(0, 1000), 'randwrite'), /jobs\.0\.write\.iops/);
  assert.throws(() => parseFio('fio: failed to open', 'read'), /no JSON: fio: failed to open/);
});

test('jobs are named after what they do', () => {
  assert.equal(job('read', 4, 32).name, '4k read qd32');
  assert.equal(job('write', 512, 8, { order: 'sequential' }).name, '512k write qd8 seq');
  assert.equal(job('read', 4, 16, { jobs: 4 }).name, '4k read qd4x16');
});

test('devices are read with O_DIRECT, exports through the nbd engine', () => {
  const run = { job: job('read', 4, 1), rampS: 1, runtimeS: 2, outputPath: '/tmp/out' };
  const device = fioArguments({ ...run, target: { device: '/dev/nbd0' } });
  assert.ok(device.includes('--direct=1') && device.includes('--filename=/dev/nbd0'));
  const exported = fioArguments({ ...run, target: { uri: 'nbd://localhost/x' } });
  assert.ok(exported.includes('--uri=nbd://localhost/x') && !exported.includes('--direct=1'));
});
