import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AttachVolume } from '@blockwire/proto/control/types.ts';
import { BlockwireError, type ErrorCode } from '@blockwire/shared/errors.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import type { BlockDevice } from './device.ts';
import { type Leftover, ladderFor, takeOver } from './takeover.ts';
import { UblkFeature, UblkState } from './ublk/uapi.ts';

const leftover: Leftover = {
  info: {
    ...{ id: 3, queueCount: 1, queueDepth: 8, ioSizeBytesMax: 4096, features: 0 },
    ...{ state: UblkState.QUIESCED, serverPid: 1, marks: [0n, 0n, 0n] },
  },
  path: '/dev/ublkb3',
  volumeId: 'vol-000000000001',
  attachmentId: 'att-000000000001',
  datapath: 'fused',
  agentDigest: 0n,
};

/** Runs takeOver; each call of `isFree` or `resume` fails with the next code, if there is one. */
async function run(failures: { isFree?: ErrorCode[]; resume?: ErrorCode[]; wanted?: number }) {
  const log = createLogger('test');
  log.level = 'silent';
  const steps: string[] = [];
  const command = { attachmentId: leftover.attachmentId } as AttachVolume;
  const device = {} as BlockDevice;
  let wanted = failures.wanted ?? 10;
  const step = (name: 'isFree' | 'resume'): void => {
    steps.push(name);
    const code = failures[name]?.shift();
    if (code !== undefined) throw new BlockwireError(code, 'the test says so');
  };
  const outcome = await takeOver(leftover, {
    log,
    isWanted: () => wanted-- > 0,
    isFree: async () => step('isFree'),
    resume: async () => {
      step('resume');
      return command;
    },
    recover: async () => {
      steps.push('recover');
      return device;
    },
  });
  return { steps, isRecovered: outcome === device };
}

test('the control plane is asked only when nobody else serves the device', async () => {
  const { steps, isRecovered } = await run({ isFree: ['BW_DEVICE_BUSY'] });
  assert.deepEqual(steps, ['isFree', 'isFree', 'resume', 'recover']);
  assert.ok(isRecovered);
});

test('what fails is tried again until it works', async () => {
  const { steps } = await run({ resume: ['BW_PEER_UNREACHABLE', 'BW_NO_IN_SYNC_REPLICA'] });
  assert.deepEqual(steps, ['isFree', 'resume', 'isFree', 'resume', 'isFree', 'resume', 'recover']);
});

test('a device that nobody knows is left alone', async () => {
  const { steps, isRecovered } = await run({ resume: ['BW_ATTACHMENT_NOT_FOUND'] });
  assert.deepEqual(steps, ['isFree', 'resume']);
  assert.equal(isRecovered, false);
});

test('one that was detached meanwhile is not taken over', async () => {
  const { steps, isRecovered } = await run({ resume: ['BW_TIMEOUT'], wanted: 1 });
  assert.deepEqual(steps, ['isFree', 'resume']);
  assert.equal(isRecovered, false);
});

test('the rungs are those that the device was added with', () => {
  const preferred = {
    ...({ send: 'zc', zeroCopyBytesMin: 1, receive: 'recv' } as const),
    ...({ buffers: 'manual', smallBytesMax: 4096 } as const),
  };
  assert.deepEqual(ladderFor(UblkFeature.AUTO_BUF_REG, preferred), {
    ...preferred,
    buffers: 'auto',
    smallBytesMax: 0,
  });
  assert.deepEqual(ladderFor(UblkFeature.USER_COPY, preferred), preferred);
});
