import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  decodeDeviceInfo,
  decodeParams,
  encodeDeviceInfo,
  encodeParams,
  UblkCtrl,
  UblkIoCommand,
} from './uapi.ts';

test('command numbers are those of the kernel header', () => {
  // _IOWR('u', 0x04, 32 bytes), _IOR('u', 0x13, 32 bytes), _IOWR('u', 0x21, 16 bytes)
  assert.equal(UblkCtrl.ADD_DEV, 0xc020_7504);
  assert.equal(UblkCtrl.GET_FEATURES, 0x8020_7513);
  assert.equal(UblkCtrl.UPDATE_SIZE, 0xc020_7515);
  assert.equal(UblkIoCommand.COMMIT_AND_FETCH_REQ, 0xc010_7521);
});

test('device info survives its encoding', () => {
  const info = {
    id: 3,
    queueCount: 2,
    queueDepth: 128,
    ioSizeBytesMax: 1 << 20,
    features: 0x0002_0859,
    marks: [1n, 2n ** 63n, 3n] as const,
  };
  const decoded = decodeDeviceInfo(encodeDeviceInfo(info));
  assert.deepEqual(decoded, { ...info, state: 0, serverPid: -1 });
});

test('parameters stand where struct ublk_params has them', () => {
  const params = {
    sizeBytes: 5 * 2 ** 40,
    blockSizeBytes: 4096,
    ioSizeBytesMax: 1 << 20,
    discardGranularityBytes: 4096,
    readOnly: true,
  };
  const bytes = encodeParams(params);
  assert.deepEqual(decodeParams(bytes), params);
  const view = new DataView(bytes.buffer);
  assert.equal(view.getUint32(0, true), bytes.length);
  assert.equal(view.getUint8(12), 12);
  assert.equal(view.getUint32(16, true), 2048);
  assert.equal(view.getBigUint64(24, true), BigInt(5 * 2 ** 31));
  assert.equal(view.getUint32(44, true), 4096);
});
