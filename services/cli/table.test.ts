import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Column, formatProperties, formatTable } from './table.ts';

interface Row {
  readonly name: string;
  readonly size: string;
}

const columns: Column<Row>[] = [
  { header: 'NAME', value: (row) => row.name },
  { header: 'SIZE', value: (row) => row.size, align: 'right' },
  { header: 'LAST', value: () => 'x' },
];

test('columns are as wide as their widest cell', () => {
  const rows = [
    { name: 'a', size: '1 GiB' },
    { name: 'longer', size: '512 MiB' },
  ];
  assert.equal(
    formatTable(columns, rows),
    ['NAME       SIZE  LAST', 'a         1 GiB  x', 'longer  512 MiB  x', ''].join('\n'),
  );
});

test('no rows leave the header, and an empty cell shows a dash', () => {
  assert.equal(formatTable(columns, []), 'NAME  SIZE  LAST\n');
  assert.match(formatTable(columns, [{ name: '', size: '1 B' }]), /^- +1 B {2}x$/m);
});

test('control characters of a foreign name do not reach the terminal', () => {
  const text = formatTable(columns, [{ name: 'evil\u001b[2J\nnext', size: '' }]);
  assert.ok(!text.includes('\u001b'));
  assert.equal(text.split('\n').length, 3);
});

test('properties are aligned', () => {
  assert.equal(
    formatProperties([
      ['id', 'vol-1'],
      ['state', ''],
    ]),
    'id     vol-1\nstate  -\n',
  );
});
