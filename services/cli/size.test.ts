import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CommandError } from './errors.ts';
import { formatSize, parseSize } from './size.ts';

test('sizes with binary units, single letters and plain bytes', () => {
  assert.equal(parseSize('4096'), 4096);
  assert.equal(parseSize('1KiB'), 1024);
  assert.equal(parseSize('512MiB'), 536_870_912);
  assert.equal(parseSize('10GiB'), 10_737_418_240);
  assert.equal(parseSize('1G'), 1_073_741_824);
  assert.equal(parseSize('1TiB'), 1_099_511_627_776);
});

test('what is not exactly a size is refused as a usage error', () => {
  const wrong = [
    '',
    'GiB',
    '1.5GiB',
    '-1',
    '1 GiB',
    '1gib',
    '1KB',
    '0x10',
    '1e9',
    '10GiBs',
    '0',
    '0GiB',
    '8P',
    '9P',
  ];
  for (const text of wrong)
    assert.throws(
      () => parseSize(text),
      (error) => error instanceof CommandError && error.exitCode === 2,
      `"${text}" was taken`,
    );
});

test('a decimal unit gets the binary one as a hint', () => {
  assert.throws(() => parseSize('10GB'), /write 10GiB/);
});

test('sizes are shown in the largest fitting unit, rounded down', () => {
  assert.equal(formatSize(0), '0 B');
  assert.equal(formatSize(1023), '1023 B');
  assert.equal(formatSize(1024), '1 KiB');
  assert.equal(formatSize(1_610_612_736), '1.5 GiB');
  assert.equal(formatSize(1_073_741_824 * 2 - 1), '1.99 GiB');
  assert.equal(formatSize(1024 ** 5 * 3000), '3000 PiB');
});
