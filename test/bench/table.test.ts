import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatNumber, renderTable } from './table.ts';

test('columns are aligned, numbers to the right', () => {
  const text = renderTable(
    [
      { title: 'job', align: 'left' },
      { title: 'IOPS', align: 'right' },
    ],
    [['4k read', '8490'], [], ['512k', '1']],
  );
  assert.equal(text, 'job      IOPS\n-------  ----\n4k read  8490\n\n512k        1');
});

test('numbers keep three digits', () => {
  assert.deepEqual([8490.4, 31.44, 2.345, 0.1234, undefined, Number.NaN].map(formatNumber), [
    '8490',
    '31.4',
    '2.35',
    '0.123',
    '-',
    '-',
  ]);
});
