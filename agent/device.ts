/**
 * The life of one attached volume on the main thread: its ublk device and its queue workers. What passes between is
 * volume-io.ts.
 *
 *   create:   ADD_DEV → SET_PARAMS → open /dev/ublkcN → workers fetch all tags and connect → START_DEV
 *   recover:  START_USER_RECOVERY → open /dev/ublkcN → workers fetch all tags → END_USER_RECOVERY → they connect
 *   release:  QUIESCE_DEV → requests in flight complete → workers end → close /dev/ublkcN; the device stays
 *   detach:   sync → TRY_STOP_DEV (or STOP_DEV) → workers end → close /dev/ublkcN → DEL_DEV
 */
import type { Membership } from '@blockwire/proto/control/types.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { datapathFeatures } from './datapath/ladder.ts';
import type { Datapath, DatapathLadder } from './datapath/messages.ts';
import { within } from './deadline.ts';
import { KernelDevice } from './kernel-device.ts';
import type { ReportLost } from './membership.ts';
import {
  addDevice,
  endRecovery,
  getParams,
  setParams,
  startDevice,
  startRecovery,
  ublkFeatures,
  updateSize,
} from './ublk/control.ts';
import { encodeMark } from './ublk/mark.ts';
import { type DeviceInfo, UblkFeature } from './ublk/uapi.ts';
import { VolumeIo } from './volume-io.ts';

const CONNECT_MS_MAX = 15_000;
const START_MS_MAX = 60_000;
const SYNC_MS_MAX = 20_000;
/** Within the time that the end of the process has for each of its parts. */
const RELEASE_MS_MAX = 6_000;
/** Discards reach whole blocks of the nodes' checksums; also the physical block. */
const BLOCK_BYTES = 4096;

export interface DeviceOptions {
  readonly log: Logger;
  readonly agentId: string;
  readonly attachmentId: string;
  readonly volumeName: string;
  readonly membership: Membership;
  readonly sizeBytes: number;
  readonly datapath: Datapath;
  /** `chooseLadder` of the host's probe. */
  readonly ladder: DatapathLadder;
  /** Each has a worker; the kernel allows as many as there are CPUs. */
  readonly queueCount: number;
  /** Requests in flight of one queue. */
  readonly queueDepth: number;
  readonly ioSizeBytesMax: number;
  /** Logical block: 512 or 4096. */
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly replicaTimeoutMs: number;
  /** See PollWindow; 0: a queue's worker sleeps at once. */
  readonly busyPollUsMax: number;
  /** I/O fails when no in-sync replica has answered for so long; zero: it waits. */
  readonly ioTimeoutMs: number;
  /** A queue worker failed: only a new process can serve the device again. */
  readonly onFatal: (error: Error) => void;
  readonly reportLost: ReportLost;
}

export class BlockDevice {
  /** Its I/O, while it lives. */
  readonly io: VolumeIo;
  readonly #options: DeviceOptions;
  #sizeBytes: number;
  #kernel: KernelDevice | null = null;

  private constructor(options: DeviceOptions) {
    this.#options = options;
    this.#sizeBytes = options.sizeBytes;
    this.io = new VolumeIo(options);
  }

  /**
   * Makes the device. Throws BW_NO_IN_SYNC_REPLICA if no in-sync replica answers, BW_KERNEL if the kernel refuses;
   * nothing is left behind then.
   */
  static async create(options: DeviceOptions): Promise<BlockDevice> {
    const device = new BlockDevice(options);
    try {
      await device.io.open();
      await device.#start();
      return device;
    } catch (error) {
      await device.#discard();
      throw error;
    }
  }

  /**
   * Serves a device that another process of this agent made and left. Returns once it lives, connected or not: its I/O
   * waits meanwhile. Its form (queues, depth, sizes of I/O and of blocks) is the device's own, not that of the options.
   * On failure it is as it was. Throws BW_DEVICE_BUSY while another process still has it, BW_KERNEL, BW_TIMEOUT.
   */
  static async recover(options: DeviceOptions, info: DeviceInfo): Promise<BlockDevice> {
    await startRecovery(info.id);
    const device = new BlockDevice(options);
    try {
      await device.io.open();
      await device.#takeOver(info);
      return device;
    } catch (error) {
      await device.#letGo();
      throw error;
    }
  }

  get attachmentId(): string {
    return this.#options.attachmentId;
  }

  get volumeId(): string {
    return this.io.volumeId;
  }

  get volumeName(): string {
    return this.#options.volumeName;
  }

  get path(): string {
    return this.#kernel?.path ?? '';
  }

  get datapath(): Datapath {
    return this.#options.datapath;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** The volume is so large now. The device never shrinks. */
  async resize(sizeBytes: number): Promise<void> {
    if (sizeBytes <= this.#sizeBytes) return;
    await updateSize(this.#kernel!.id, sizeBytes);
    this.#options.log.info({ volume: this.volumeId, device: this.path, sizeBytes }, 'resized');
    this.#sizeBytes = sizeBytes;
  }

  /**
   * Lets the device go for another process: new requests are held back, those in flight complete, /dev/ublkcN is closed.
   * What does not complete in time (no replica answers) the kernel gives out again.
   */
  async release(): Promise<void> {
    const deadlineMs = performance.now() + RELEASE_MS_MAX;
    this.io.endHold();
    try {
      await this.#kernel!.quiesce(deadlineMs);
      this.io.post({ type: 'release' });
      const leftMs = Math.max(1, deadlineMs - performance.now());
      await within(this.io.ended, leftMs, 'requests in flight did not complete');
    } catch (error) {
      this.#options.log.warn({ device: this.path, err: error }, 'let go with requests in flight');
    }
    await this.#letGo();
  }

  /**
   * Removes the device. Without `force`, BW_DEVICE_BUSY while it is open. With it, requests that still wait for a
   * replica fail with an I/O error.
   */
  async detach(force: boolean, syncMsMax = SYNC_MS_MAX): Promise<void> {
    this.io.endHold();
    if (force) {
      this.io.end();
      this.io.post({ type: 'fail' });
      await this.#kernel!.stop();
    } else {
      await this.#kernel!.sync(syncMsMax, this.#options.log);
      await this.#kernel!.stopUnlessOpen();
    }
    await this.#discard();
  }

  async #start(): Promise<void> {
    const { datapath, ladder, queueDepth, ioSizeBytesMax, sizeBytes } = this.#options;
    const offered = await ublkFeatures();
    const recovery = UblkFeature.USER_RECOVERY | UblkFeature.USER_RECOVERY_REISSUE;
    const wanted =
      datapathFeatures(datapath, ladder) |
      recovery |
      UblkFeature.UPDATE_SIZE |
      UblkFeature.QUIESCE |
      UblkFeature.SAFE_STOP_DEV;
    const { agentId, attachmentId, queueCount, blockSizeBytes, readOnly } = this.#options;
    const info = await addDevice({
      id: -1,
      queueCount,
      queueDepth,
      ioSizeBytesMax,
      features: (wanted & offered) | UblkFeature.CMD_IOCTL_ENCODE,
      marks: encodeMark({ agentId, attachmentId, volumeId: this.volumeId, datapath }),
    });
    const kernel = new KernelDevice(info.id);
    this.#kernel = kernel;
    await setParams(info.id, {
      sizeBytes,
      blockSizeBytes,
      ioSizeBytesMax: info.ioSizeBytesMax,
      discardGranularityBytes: BLOCK_BYTES,
      readOnly,
    });
    await this.#startQueues(kernel, info, info.ioSizeBytesMax);
    await this.io.connected(CONNECT_MS_MAX);
    await within(startDevice(info.id), START_MS_MAX, 'the kernel did not start the device');
    await kernel.appeared();
    this.io.begin();
  }

  async #takeOver(info: DeviceInfo): Promise<void> {
    const kernel = new KernelDevice(info.id);
    this.#kernel = kernel;
    const params = await getParams(info.id);
    this.#sizeBytes = params.sizeBytes;
    await this.#startQueues(kernel, info, params.ioSizeBytesMax);
    await within(endRecovery(info.id), START_MS_MAX, 'the kernel did not take the device up again');
    this.io.begin();
    await this.resize(this.#options.sizeBytes);
  }

  async #startQueues(kernel: KernelDevice, info: DeviceInfo, ioSizeBytesMax: number): Promise<void> {
    const charFd = await kernel.openChar();
    const { datapath, ladder, replicaTimeoutMs, busyPollUsMax, agentId, attachmentId } = this.#options;
    const { fetched } = this.io.start(`ublk-${info.id}`, {
      ...{ charFd, ioSizeBytesMax, datapath, ladder, replicaTimeoutMs, busyPollUsMax },
      queueCount: info.queueCount,
      queueDepth: info.queueDepth,
      sizeBytes: this.#sizeBytes,
      deviceName: `${agentId}/${attachmentId}`,
    });
    await within(fetched, START_MS_MAX, 'the queues did not fetch their requests');
  }

  /** Ends the workers and closes /dev/ublkcN; the device stays with the kernel. */
  async #letGo(): Promise<void> {
    this.io.end();
    // Workers that ended do not hear this.
    this.io.post({ type: 'release' });
    await within(this.io.ended, 1000, 'the queues did not end').catch(() => this.io.terminate());
    this.#kernel?.closeChar();
  }

  /** Stops and deletes the device, ends the workers; safe at any stage of its life. */
  async #discard(): Promise<void> {
    this.io.end();
    const kernel = this.#kernel;
    if (kernel === null) return;
    await kernel.stop();
    await within(this.io.ended, START_MS_MAX, 'the queues did not end');
    kernel.closeChar();
    await kernel.delete();
    this.#kernel = null;
  }
}
