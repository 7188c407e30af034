import assert from 'node:assert/strict';
import { it } from 'node:test';
import { version } from './emulator.ts';

it('reads what qemu says of its version', () => {
  const old = version('QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003');
  assert.equal(old, 7.02);
  assert.ok(version('QEMU emulator version 8.1.0') > version('QEMU emulator version 8.0.4'));
  assert.ok(version('QEMU emulator version 10.0.2 (Debian)') > version('QEMU emulator version 9.10.0'));
  assert.equal(version('something else'), 0);
});
