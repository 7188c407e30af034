import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addSession, type ExportName, formatExportName, parseExportName } from './export-name.ts';

const BARE: ExportName = {
  ...{ volumeId: 'vol-1', snapshot: null, capability: null, epoch: null, link: null, attempt: null },
};

test('bare volumes and snapshots', () => {
  assert.deepEqual(parseExportName('vol-1'), BARE);
  assert.deepEqual(parseExportName('vol-1@s.2'), { ...BARE, snapshot: 's.2' });
  assert.equal(formatExportName({ ...BARE, snapshot: 's.2' }), 'vol-1@s.2');
});

test('what is written is read back, in any order', () => {
  const full = { ...BARE, capability: 'e30.c2ln-_', epoch: 7, link: 'host a/att-1/0', attempt: 0 };
  const text = formatExportName(full);
  assert.equal(text, 'vol-1?cap=e30.c2ln-_&epoch=7&link=host%20a%2Fatt-1%2F0&attempt=0');
  assert.deepEqual(parseExportName(text), full);
  const [path, query] = text.split('?');
  assert.deepEqual(parseExportName(`${path}?${query!.split('&').reverse().join('&')}`), full);
});

test('a session is added to a name with and without a capability', () => {
  const session = { epoch: 3, link: 'a', attempt: 2 };
  assert.equal(addSession('vol-1?cap=x', session), 'vol-1?cap=x&epoch=3&link=a&attempt=2');
  assert.equal(
    addSession('vol-1', { ...session, link: null, attempt: null }),
    formatExportName({ ...BARE, epoch: 3 }),
  );
});

test('everything else is refused', () => {
  const refused = [
    ...['', '?cap=x', '-a', '.a', 'a/b', 'a@', 'a@b@c', 'a@.b', `a${'b'.repeat(128)}`, 'ä'],
    ...[
      'a?',
      'a?cap',
      'a?cap=',
      'a?cap=x=y',
      'a?cap=x&cap=y',
      'a?cap=x&',
      'a?other=1',
      'a?cap=%',
      'a?toString=1',
    ],
    ...['a?epoch=-1', 'a?epoch=01', 'a?epoch=1.5', 'a?epoch=9007199254740993', 'a?attempt=x', 'a?b?cap=x'],
    `a?cap=${'x'.repeat(4096)}`,
  ];
  for (const text of refused) {
    assert.throws(() => parseExportName(text), { code: 'BW_INVALID_ARGUMENT' }, text);
  }
  assert.throws(() => addSession('a', { epoch: 1, link: 'l'.repeat(4096), attempt: 1 }), {
    code: 'BW_INVALID_ARGUMENT',
  });
});
