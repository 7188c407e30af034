import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseDatapath, type HostProbe } from './probe.ts';

function host(fused: boolean, copy: boolean): HostProbe {
  return {
    ublk: copy,
    features: 0,
    ioUring: null,
    modes: [
      { mode: 'fused', available: fused, missing: fused ? [] : ['AUTO_BUF_REG'] },
      { mode: 'copy', available: copy, missing: copy ? [] : ['ublk'] },
    ],
  };
}

test('auto takes the best mode that works', () => {
  assert.equal(chooseDatapath(host(true, true), 'auto'), 'fused');
  assert.equal(chooseDatapath(host(false, true), 'auto'), 'copy');
});

test('a mode that was asked for is taken or refused with what is missing', () => {
  assert.equal(chooseDatapath(host(true, true), 'copy'), 'copy');
  assert.throws(() => chooseDatapath(host(false, true), 'fused'), {
    code: 'BW_DATAPATH_UNAVAILABLE',
    message: /AUTO_BUF_REG/,
  });
  assert.throws(() => chooseDatapath(host(false, false), 'auto'), { code: 'BW_DATAPATH_UNAVAILABLE' });
  assert.throws(() => chooseDatapath(host(true, true), 'warp'), { code: 'BW_INVALID_ARGUMENT' });
});
