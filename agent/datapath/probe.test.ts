import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseLadder, datapathFeatures, describeLadder } from './ladder.ts';
import { DATAPATHS } from './messages.ts';
import { chooseDatapath, type HostProbe, missingFor, RUNGS, type Rung } from './probe.ts';
import { probeSockets, SOCKET_RUNGS } from './probe-sockets.ts';

/** A host with ublk whose kernel lacks some rungs. */
function host(...lacking: Rung[]): HostProbe {
  const rungs = RUNGS.map((rung) => ({
    rung,
    name: rung,
    available: !lacking.includes(rung),
    reason: lacking.includes(rung) ? 'EINVAL' : '',
  }));
  const modes = DATAPATHS.map((mode) => {
    const missing = missingFor(mode, rungs);
    return { mode, available: missing.length === 0, missing };
  });
  return { ublk: true, features: 0, ioUring: null, modes, rungs };
}

function hostWithoutUblk(): HostProbe {
  const modes = DATAPATHS.map((mode) => ({ mode, available: false, missing: ['ublk'] }));
  return { ...host(), ublk: false, modes };
}

test('auto takes the best mode that works', () => {
  assert.equal(chooseDatapath(host(), 'auto'), 'fused');
  assert.equal(chooseDatapath(host('manualBuffers'), 'auto'), 'copy');
});

test('a mode that was asked for is taken or refused with what is missing', () => {
  assert.equal(chooseDatapath(host(), 'copy'), 'copy');
  assert.equal(chooseDatapath(host(), 'splice'), 'splice');
  assert.throws(() => chooseDatapath(host('recv', 'readFixed'), 'fused'), {
    code: 'BW_DATAPATH_UNAVAILABLE',
    message: /recv \(EINVAL\) or readFixed \(EINVAL\)/,
  });
  assert.throws(() => chooseDatapath(host('userCopy'), 'splice'), { code: 'BW_DATAPATH_UNAVAILABLE' });
  assert.throws(() => chooseDatapath(hostWithoutUblk(), 'auto'), { code: 'BW_DATAPATH_UNAVAILABLE' });
  assert.throws(() => chooseDatapath(host(), 'warp'), { code: 'BW_INVALID_ARGUMENT' });
});

test('the ladder goes down with what the kernel lacks', () => {
  assert.equal(chooseLadder(host()).send, 'auto');
  assert.equal(chooseLadder(host('send')).send, 'zc');
  assert.equal(chooseLadder(host('sendZc')).send, 'plain');
  assert.equal(chooseLadder(host('recv')).receive, 'readFixed');
  assert.equal(chooseLadder(host('autoBuffers')).buffers, 'manual');
  assert.equal(chooseLadder(host('userCopy')).smallBytesMax, 0);
  assert.equal(chooseLadder(host('send')).zeroCopyBytesMin, 0, 'nothing but SEND_ZC can send pages');
});

test('a rung that was asked for is taken or refused', () => {
  const ladder = chooseLadder(host(), { send: 'plain', buffers: 'manual', smallBytesMax: 0 });
  assert.deepEqual([ladder.send, ladder.buffers, ladder.smallBytesMax], ['plain', 'manual', 0]);
  assert.throws(() => chooseLadder(host('sendZc'), { send: 'zc' }), { code: 'BW_DATAPATH_UNAVAILABLE' });
  assert.throws(() => chooseLadder(host('recv'), { receive: 'recv' }), {
    code: 'BW_DATAPATH_UNAVAILABLE',
    message: /EINVAL/,
  });
});

test('ublk is asked for what the rungs need', () => {
  assert.equal(datapathFeatures('copy', chooseLadder(host())), 0);
  assert.equal(datapathFeatures('splice', chooseLadder(host())), 1 << 7);
  assert.equal(datapathFeatures('fused', chooseLadder(host())), (1 << 0) | (1 << 7) | (1 << 11));
  const ladder = chooseLadder(host(), { buffers: 'manual', smallBytesMax: 0 });
  assert.equal(datapathFeatures('fused', ladder), 1 << 0);
  assert.match(describeLadder('fused', ladder), /^fused, SEND_ZC from 32 KiB, RECV, manual buffers$/);
});

test('every operation is tried on a socket, with a reason for each that does not work', () => {
  const report = probeSockets();
  for (const rung of SOCKET_RUNGS) assert.notEqual(report[rung], '', rung);
  // Older than registered buffers for SEND: io_uring on any kernel that runs these tests.
  assert.equal(report.sendZc, null);
  assert.equal(report.readFixed, null);
});
