import assert from 'node:assert/strict';
import { test } from 'node:test';
import { agentDigest, encodeMark, readMark } from './mark.ts';

test('a mark tells volume, attachment, agent and datapath', () => {
  const mark = { volumeId: 'vol-00ff12345678', attachmentId: 'att-f00000000001' } as const;
  for (const datapath of ['fused', 'splice', 'copy'] as const) {
    const read = readMark(encodeMark({ ...mark, agentId: 'host-1', datapath }));
    assert.deepEqual(read, { ...mark, agentDigest: agentDigest('host-1'), datapath });
  }
  assert.notEqual(agentDigest('host-1'), agentDigest('host-2'));
});

test('the words of other servers are no mark', () => {
  // None, and those that ublksrv and its like put into ublksrv_flags.
  for (const flags of [0n, 1n, 0xffff_ffffn, 0xffff_ffff_ffff_ffffn]) {
    assert.equal(readMark([flags, 0n, 0n]), null);
  }
  const [first, second, agent] = encodeMark({
    agentId: 'host-1',
    volumeId: 'vol-000000000001',
    attachmentId: 'att-000000000001',
    datapath: 'fused',
  });
  assert.equal(readMark([first, second + (1n << 56n), agent]), null, 'a later version');
  assert.equal(readMark([first ^ (1n << 48n), second, agent]), null);
});
