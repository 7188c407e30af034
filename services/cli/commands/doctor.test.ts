import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CommandError } from '../errors.ts';
import { formatReport, parseReport, type Report } from './doctor.ts';

const REPORT: Report = {
  host: { kernel: '7.3.4', node: '26.10.0' },
  checks: [
    { name: 'io_uring', ok: true, detail: 'allowed', advice: '' },
    { name: 'ublk', ok: false, detail: '/dev/ublk-control is missing', advice: 'modprobe ublk_drv' },
  ],
  datapath: {
    auto: 'copy',
    modes: [
      { mode: 'fused', available: false, missing: 'SEND with registered buffers' },
      { mode: 'copy', available: true, missing: null },
    ],
    rungs: [{ name: 'io_uring SEND', available: false, reason: 'EINVAL' }],
  },
};

test('the report is the last line', () => {
  assert.deepEqual(parseReport(`{"progress":1}\n${JSON.stringify(REPORT)}\n`), REPORT);
});

test('anything else is a protocol error', () => {
  for (const answer of ['', 'oops\n', '{}\n', JSON.stringify({ ...REPORT, datapath: {} })])
    assert.throws(
      () => parseReport(answer),
      (error) => error instanceof CommandError && error.code === 'BW_PROTOCOL',
    );
});

test('people see what is missing, what to do, and what auto takes', () => {
  const text = formatReport(REPORT);
  assert.match(text, /^ublk +missing +\/dev\/ublk-control is missing$/m);
  assert.match(text, /^fused +no +SEND with registered buffers$/m);
  assert.match(text, /^io_uring SEND +no +EINVAL$/m);
  assert.match(text, /^ublk +modprobe ublk_drv$/m);
  assert.match(text, /auto takes: copy\n$/);
  assert.match(formatReport({ ...REPORT, datapath: { auto: null, modes: [] } }), /No data path works/);
});
