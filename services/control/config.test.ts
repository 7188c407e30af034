import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readConfig } from './config.ts';

test('arguments come before the environment, which comes before the defaults', () => {
  const environment = { BLOCKWIRE_CONTROL_REST_PORT: '1', BLOCKWIRE_CONTROL_GRPC_PORT: '2' };
  assert.deepEqual(readConfig(['--rest-port', '0', '--json', '--data-dir', '/d'], environment), {
    host: '127.0.0.1',
    restPort: 0,
    grpcPort: 2,
    dataDir: '/d',
    json: true,
  });
});

test('unknown options and impossible ports are refused', () => {
  for (const args of [['--rest-prot', '1'], ['--rest-port', '65536'], ['--rest-port', 'x'], ['stray']]) {
    assert.throws(() => readConfig(args, {}), { code: 'BW_INVALID_ARGUMENT' });
  }
});
