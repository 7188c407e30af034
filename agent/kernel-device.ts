/**
 * One ublk device as the kernel shows it: its nodes in /dev, and how it is held back, synced, stopped and deleted.
 *
 * This process never reads or writes its own device: a thread that waits for the device cannot be killed, and while it
 * lives the kernel keeps /dev/ublkcN open and gives the device to nobody else.
 */
import { execFile } from 'node:child_process';
import { closeSync, constants, existsSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { within } from './deadline.ts';
import {
  deleteDevice,
  quiesceDevice,
  startRecovery,
  stopDevice,
  tryStopDevice,
  ublkFeatures,
} from './ublk/control.ts';
import { UblkFeature } from './ublk/uapi.ts';

const NODE_APPEARS_MS_MAX = 10_000;
const QUIESCE_MS = 200;
const RECOVERY_POLL_MS = 5;

export class KernelDevice {
  readonly id: number;
  #charFd = -1;

  /** @param id of a device that was added */
  constructor(id: number) {
    this.id = id;
  }

  get path(): string {
    return `/dev/ublkb${this.id}`;
  }

  /** Opens /dev/ublkcN; `closeChar` closes it. */
  async openChar(): Promise<number> {
    const path = `/dev/ublkc${this.id}`;
    await appears(path);
    this.#charFd = openSync(path, constants.O_RDWR);
    return this.#charFd;
  }

  closeChar(): void {
    if (this.#charFd >= 0) closeSync(this.#charFd);
    this.#charFd = -1;
  }

  /** Resolves when the block device's node is there. */
  appeared(): Promise<void> {
    return appears(this.path);
  }

  /** Until every queue has an idle tag: new requests are held back from the first attempt on. */
  async quiesce(deadlineMs: number): Promise<void> {
    for (;;) {
      try {
        await quiesceDevice(this.id, QUIESCE_MS);
        return;
      } catch (error) {
        if (!isBusy(error) || performance.now() > deadlineMs) throw error;
      }
    }
  }

  /**
   * What programs wrote through the page cache goes to the replicas before the device does; by another process, see
   * above. Throws BW_TIMEOUT when they do not take it.
   */
  async sync(milliseconds: number, log: Logger): Promise<void> {
    const synced = new Promise<void>((resolve) => {
      execFile('sync', [this.path], (error) => {
        if (error !== null) log.warn({ device: this.path, err: error }, 'not synced');
        resolve();
      });
    });
    await within(synced, milliseconds, `${this.path} was not synced`);
  }

  stop(): Promise<void> {
    return stopDevice(this.id);
  }

  /** Throws BW_DEVICE_BUSY while it is open or mounted. */
  async stopUnlessOpen(): Promise<void> {
    if (((await ublkFeatures()) & UblkFeature.SAFE_STOP_DEV) !== 0) {
      await tryStopDevice(this.id);
      return;
    }
    try {
      // Exclusive opening fails while the device is mounted or held.
      closeSync(openSync(this.path, constants.O_RDONLY | constants.O_EXCL));
    } catch (error) {
      throw new BlockwireError('BW_DEVICE_BUSY', `${this.path} is open or mounted: unmount it first`, {
        cause: error,
      });
    }
    await this.stop();
  }

  delete(): Promise<void> {
    return deleteDevice(this.id);
  }
}

/**
 * Waits until a device whose server ended can be served again: the kernel still tidies up after it. Throws
 * BW_DEVICE_BUSY when somebody serves it all that time.
 */
export async function recoverable(deviceId: number, timeoutMs: number): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs;
  for (;;) {
    try {
      await startRecovery(deviceId);
      return;
    } catch (error) {
      if (!isBusy(error) || performance.now() > deadlineMs) throw error;
    }
    await sleep(RECOVERY_POLL_MS);
  }
}

function isBusy(error: unknown): boolean {
  return error instanceof BlockwireError && error.code === 'BW_DEVICE_BUSY';
}

/** Device nodes are made by devtmpfs (or udev) a moment after the command. */
async function appears(path: string): Promise<void> {
  const deadlineMs = performance.now() + NODE_APPEARS_MS_MAX;
  while (!existsSync(path)) {
    if (performance.now() > deadlineMs)
      throw new BlockwireError('BW_KERNEL', `${path} did not appear; is /dev a devtmpfs?`);
    await sleep(20);
  }
}
