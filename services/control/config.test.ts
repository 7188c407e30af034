import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readConfig } from './config.ts';
import { DEFAULT_POLICY } from './domain/context.ts';

test('arguments come before the environment, which comes before the defaults', () => {
  const environment = { BLOCKWIRE_CONTROL_REST_PORT: '1', BLOCKWIRE_CONTROL_GRPC_PORT: '2' };
  assert.deepEqual(readConfig(['--rest-port', '0', '--json', '--data-dir', '/d'], environment), {
    host: '127.0.0.1',
    restPort: 0,
    grpcPort: 2,
    dataDir: '/d',
    policy: DEFAULT_POLICY,
    json: true,
  });
});

test('what the cluster does by itself is set in units', () => {
  const args = ['--rebuilds-per-node', '4', '--rebuild-rate', '1GiB', '--replace-after', '90s'];
  args.push('--scrub-interval', '3d', '--scrub-rate', '10M');
  assert.deepEqual(readConfig(args, {}).policy, {
    ...DEFAULT_POLICY,
    ...{ scrubIntervalMs: 3 * 86_400_000, scrubBytesPerSecond: 10 * 2 ** 20 },
    ...{ rebuildsPerNodeMax: 4, rebuildBytesPerSecond: 2 ** 30, replaceAfterMs: 90_000 },
  });
  const none = readConfig(['--rebuild-rate', '0', '--replace-after', '0'], {}).policy;
  assert.deepEqual([none.rebuildBytesPerSecond, none.replaceAfterMs], [0, Number.POSITIVE_INFINITY]);
  for (const wrong of [
    ['--rebuilds-per-node', '0'],
    ['--rebuild-rate', '1GB'],
    ['--rebuild-rate', '-1'],
    ['--replace-after', '10'],
    ['--replace-after', '1y'],
  ]) {
    assert.throws(() => readConfig(wrong, {}), { code: 'BW_INVALID_ARGUMENT' });
  }
});

test('unknown options and impossible ports are refused', () => {
  for (const args of [['--rest-prot', '1'], ['--rest-port', '65536'], ['--rest-port', 'x'], ['stray']]) {
    assert.throws(() => readConfig(args, {}), { code: 'BW_INVALID_ARGUMENT' });
  }
});
