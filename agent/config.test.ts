import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseConfig } from './config.ts';

test('defaults', () => {
  const config = parseConfig([]);
  assert.equal(config.control, '127.0.0.1:7401');
  assert.equal(config.metricsPort, 7421);
  assert.equal(config.datapath, 'auto');
});

test('bad options are refused with their name', () => {
  const bad: [string[], RegExp][] = [
    [['--control', 'nowhere'], /--control/],
    [['--queue-depth', '0'], /--queue-depth/],
    [['--queue-depth', '5000'], /--queue-depth/],
    [['--io-size', '5000'], /--io-size/],
    [['--queues', '0'], /--queues/],
    [['--block-size', '1024'], /--block-size/],
    [['--io-timeout', 'soon'], /--io-timeout/],
    [['--metrics-port', '-1'], /metrics-port/],
    [['--busy-poll', '10001'], /--busy-poll/],
    [['--frobnicate'], /frobnicate/],
    [['stray'], /stray/],
  ];
  for (const [argv, message] of bad) {
    assert.throws(() => parseConfig(argv), { code: 'BW_INVALID_ARGUMENT', message });
  }
});
