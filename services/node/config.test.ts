import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { parseNodeArguments } from './config.ts';

const REQUIRED = ['--id', 'node-1', '--data-dir', '/data'];

test('defaults are the documented ports on the loopback, standing alone', () => {
  const config = parseNodeArguments(REQUIRED);
  assert.equal(config.host, '127.0.0.1');
  assert.equal(config.nbdPort, 10809);
  assert.equal(config.metricsPort, 7411);
  assert.equal(config.control, null);
  assert.equal(config.advertise, null);
  assert.equal(config.peerAddress, null);
  assert.equal(config.capacityBytes, null);
  assert.equal(config.workers, 1);
  assert.deepEqual(config.exports, []);
});

test('every option is taken', () => {
  const config = parseNodeArguments([
    ...REQUIRED,
    ...['--nbd-port', '0', '--advertise', '10.0.0.1:10809', '--control', '[::1]:7401', '--zone', 'z'],
    ...['--peer-address', '10.9.0.1:10809'],
    ...['--capacity-bytes', '1099511627776', '--workers', '2', '--export', 'a=4096', '--export', 'b=1'],
    ...['--buffer-mib', '8', '--connections', '9', '--json'],
  ]);
  assert.equal(config.peerAddress, '10.9.0.1:10809');
  assert.equal(config.capacityBytes, 2 ** 40);
  assert.equal(config.poolBytes, 8 * 2 ** 20);
  assert.deepEqual(config.exports, [
    { name: 'a', sizeBytes: 4096 },
    { name: 'b', sizeBytes: 1 },
  ]);
  assert.equal(config.json, true);
});

test('what cannot be meant is refused with the option and the usage', () => {
  const cases: [string[], RegExp][] = [
    [['--id', 'x'], /--data-dir is missing/],
    [['--data-dir', 'x'], /--id is missing/],
    [[...REQUIRED, '--nbd-port', '65536'], /--nbd-port 65536/],
    [[...REQUIRED, '--nbd-port', '1e3'], /--nbd-port 1e3/],
    [[...REQUIRED, '--workers', '0'], /--workers 0/],
    [[...REQUIRED, '--export', 'a'], /--export a/],
    [[...REQUIRED, '--export', 'a=0'], /--export 0/],
    [[...REQUIRED, '--control', 'nowhere'], /--control nowhere/],
    [[...REQUIRED, '--colour'], /colour/],
    [[...REQUIRED, 'positional'], /positional/],
  ];
  for (const [argv, message] of cases) {
    assert.throws(
      () => parseNodeArguments(argv),
      (error) =>
        error instanceof BlockwireError &&
        error.code === 'BW_INVALID_ARGUMENT' &&
        message.test(error.message) &&
        error.message.includes('usage:'),
      argv.join(' '),
    );
  }
});
