/**
 * Devices that another process of this agent left with the kernel: killed, or asked for a handover. The kernel knows
 * whose they are (ublk/mark.ts); what they are to be connected to only the control plane knows, since a replica may have
 * gone stale in the meantime.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { AttachVolume } from '@blockwire/proto/control/types.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { Datapath, DatapathLadder } from './datapath/messages.ts';
import type { BlockDevice } from './device.ts';
import { recoverable } from './kernel-device.ts';
import { deleteDevice, listDevices, stopDevice, tryStopDevice } from './ublk/control.ts';
import { agentDigest, readMark } from './ublk/mark.ts';
import { type DeviceInfo, UblkFeature, UblkState } from './ublk/uapi.ts';

/** How long the kernel may tidy up after a process that ended. */
const OLD_SERVER_MS_MAX = 10_000;
const RETRY_MS_MIN = 100;
const RETRY_MS_MAX = 2000;

/** Resolves when no process has the device any more. Throws BW_DEVICE_BUSY. */
export function oldServerGone(deviceId: number): Promise<void> {
  return recoverable(deviceId, OLD_SERVER_MS_MAX);
}

export interface Leftover {
  readonly info: DeviceInfo;
  readonly path: string;
  readonly volumeId: string;
  readonly attachmentId: string;
  readonly datapath: Datapath;
  readonly agentDigest: bigint;
}

/** Every Blockwire device of this host, served or not. Devices of other ublk servers are not among them. */
export async function listBlockwireDevices(): Promise<Leftover[]> {
  return (await listDevices()).flatMap((info) => {
    const mark = readMark(info.marks);
    return mark === null ? [] : [{ ...mark, info, path: `/dev/ublkb${info.id}` }];
  });
}

/** Those of one agent. */
export async function listLeftovers(agentId: string): Promise<Leftover[]> {
  const digest = agentDigest(agentId);
  return (await listBlockwireDevices()).filter((device) => device.agentDigest === digest);
}

/**
 * Tries to take a device over until it is served here (the device), or not wanted any more, or nobody's (null: it is left
 * as it is, its I/O waiting, until somebody removes it).
 */
export async function takeOver(
  leftover: Leftover,
  steps: {
    readonly log: Logger;
    readonly isWanted: () => boolean;
    /** Resolves when no other process has the device any more. */
    readonly isFree: (deviceId: number) => Promise<void>;
    readonly resume: (attachmentId: string) => Promise<AttachVolume>;
    readonly recover: (command: AttachVolume) => Promise<BlockDevice | null>;
  },
): Promise<BlockDevice | null> {
  const { log, isWanted, isFree, resume, recover } = steps;
  const about = { volume: leftover.volumeId, attachment: leftover.attachmentId, device: leftover.path };
  let delayMs = RETRY_MS_MIN;
  while (isWanted()) {
    try {
      // Before the control plane is asked: its answer cuts whoever serves the device now.
      if (leftover.info.state !== UblkState.DEAD) await isFree(leftover.info.id);
      const command = await resume(leftover.attachmentId);
      if (leftover.info.state === UblkState.DEAD) {
        log.warn(about, 'a device that was never started: detach it, and attach the volume again');
        return null;
      }
      return await recover(command);
    } catch (thrown) {
      const { code, message } = toBlockwireError(thrown);
      if (code === 'BW_ATTACHMENT_NOT_FOUND') {
        log.warn(about, 'nobody knows this device any more; see `blockwire agent orphans`');
        return null;
      }
      log.warn({ ...about, code }, `not taken over yet: ${message}`);
    }
    await sleep(delayMs);
    delayMs = Math.min(2 * delayMs, RETRY_MS_MAX);
  }
  return null;
}

/**
 * Removes a device that nobody serves; its waiting I/O fails. Throws BW_DEVICE_BUSY while a process serves it, or without
 * `force` while it is open.
 */
export async function removeLeftover({ info }: Leftover, force: boolean): Promise<void> {
  if (info.state !== UblkState.DEAD) {
    await oldServerGone(info.id);
    if (!force && (info.features & UblkFeature.SAFE_STOP_DEV) === 0)
      throw new BlockwireError(
        'BW_DEVICE_BUSY',
        `whether device ${info.id} is open cannot be told: use force`,
      );
    await (force ? stopDevice(info.id) : tryStopDevice(info.id));
  }
  await deleteDevice(info.id);
}

/** The rungs that fit a device as it was added, which may have been by another version. */
export function ladderFor(features: number, preferred: DatapathLadder): DatapathLadder {
  return {
    ...preferred,
    buffers: (features & UblkFeature.AUTO_BUF_REG) !== 0 ? 'auto' : 'manual',
    smallBytesMax: (features & UblkFeature.USER_COPY) !== 0 ? preferred.smallBytesMax : 0,
  };
}
