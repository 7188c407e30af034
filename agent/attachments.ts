/**
 * The volumes that are attached to this host: those that this process serves, and those that an earlier process of this
 * agent left with the kernel (leftovers), which are taken over.
 */
import type {
  AttachedDeviceInput,
  AttachVolume,
  DetachVolume,
  DeviceStatusInput,
  HoldWrites,
  Membership,
  ReleaseWrites,
  ResizeDevice,
  UpdateMembership,
} from '@blockwire/proto/control/types.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { AgentConfig } from './config.ts';
import { chooseLadder } from './datapath/ladder.ts';
import { chooseDatapath, type HostProbe } from './datapath/probe.ts';
import { BlockDevice, type DeviceOptions } from './device.ts';
import { InOrder } from './in-order.ts';
import { type Leftover, ladderFor, oldServerGone, removeLeftover, takeOver } from './takeover.ts';

export interface AttachmentsOptions {
  readonly log: Logger;
  readonly config: AgentConfig;
  /** What this host offers; it does not change while a process lives. */
  readonly probe: HostProbe;
  readonly reportLost: DeviceOptions['reportLost'];
  readonly onFatal: DeviceOptions['onFatal'];
  /** Asks the control plane for an attachment under the next generation. */
  readonly resume: (attachmentId: string) => Promise<AttachVolume>;
}

/** With the release that may follow it within the time that the end of a process has for this part. */
const LAST_SYNC_MS_MAX = 3_000;
/** Longer than this nobody waits for a write. */
const HOLD_MS_MAX = 60_000;

/** A device that was taken over. */
export interface Takeover {
  readonly device: string;
  /** From the moment the old process held I/O back until a replica serves it here; null after a crash. */
  readonly pauseMs: number | null;
}

export class Attachments {
  readonly #options: AttachmentsOptions;
  /** By volume id: a volume is attached once. */
  readonly #devices = new Map<string, BlockDevice>();
  /** Commands, by volume id. */
  readonly #commands = new InOrder();
  /** By attachment id: devices of an earlier process. */
  readonly #leftovers = new Map<string, Leftover>();
  #closing = false;

  constructor(options: AttachmentsOptions) {
    this.#options = options;
  }

  get devices(): readonly BlockDevice[] {
    return [...this.#devices.values()];
  }

  /** What the control plane is told at registration: also what is still to be taken over, so that it is not lost. */
  get reports(): AttachedDeviceInput[] {
    const left = [...this.#leftovers.values()].map(({ attachmentId, volumeId, path, datapath }) => ({
      attachmentId,
      volumeId,
      device: path,
      datapath,
      generation: 0,
    }));
    return [...this.devices.map(describeDevice), ...left];
  }

  /** What each heartbeat says. */
  get statuses(): DeviceStatusInput[] {
    const left = [...this.#leftovers.keys()].map(
      (attachmentId) => ({ attachmentId, io: 'IO_STATE_RECOVERING' }) as const,
    );
    return [
      ...this.devices.map(({ attachmentId, io }) => ({ attachmentId, io: IO_STATE[io.ioState] })),
      ...left,
    ];
  }

  /**
   * Takes these devices over, each as soon as the control plane allows it. Resolves when each is served or given up
   * (nobody knows its attachment any more); until then its I/O waits.
   * @param heldAtMs by attachment id: when the process before held the I/O back, on the monotonic clock
   */
  async takeOver(leftovers: readonly Leftover[], heldAtMs: ReadonlyMap<string, number>): Promise<Takeover[]> {
    for (const leftover of leftovers) this.#leftovers.set(leftover.attachmentId, leftover);
    const { log, resume } = this.#options;
    const outcomes = leftovers.map(async (leftover) => {
      const device = await takeOver(leftover, {
        log,
        resume,
        isFree: oldServerGone,
        isWanted: () => !this.#closing && this.#leftovers.has(leftover.attachmentId),
        recover: (command) => this.#commands.run(leftover.volumeId, () => this.#recover(leftover, command)),
      });
      if (device === null) return [];
      await device.io.served();
      const heldAt = heldAtMs.get(device.attachmentId);
      const pauseMs = heldAt === undefined ? null : Math.round(monotonicMs() - heldAt);
      log.info({ volume: device.volumeId, device: device.path, pauseMs }, 'taken over');
      return [{ device: device.path, pauseMs }];
    });
    const settled = await Promise.allSettled(outcomes);
    return settled.flatMap((outcome) => (outcome.status === 'fulfilled' ? outcome.value : []));
  }

  /** Safe to repeat: an attachment that exists is answered as it is. */
  attach(command: AttachVolume): Promise<AttachedDeviceInput> {
    return this.#commands.run(command.membership?.volumeId ?? '', () => this.#attach(command));
  }

  /** Safe to repeat: an attachment that is not here is no error. */
  detach(command: DetachVolume): Promise<void> {
    return this.#commands.run(command.volumeId, () => this.#detach(command));
  }

  /** Safe to repeat. Throws BW_ATTACHMENT_NOT_FOUND. */
  resize(command: ResizeDevice): Promise<void> {
    const { volumeId, attachmentId, sizeBytes } = command;
    return this.#commands.run(volumeId, async () => {
      const device = this.#devices.get(volumeId);
      // One that is being taken over learns its size then.
      if (this.#leftovers.has(attachmentId)) return;
      if (device?.attachmentId !== attachmentId) {
        throw new BlockwireError('BW_ATTACHMENT_NOT_FOUND', `attachment ${attachmentId} is not here`);
      }
      await device.resize(sizeBytes);
    });
  }

  /**
   * Safe to repeat. Resolves when the device goes by this membership, and its barrier has passed; waiting for that keeps no
   * other command waiting. Throws BW_ATTACHMENT_NOT_FOUND, BW_GENERATION_OLD, BW_TIMEOUT.
   */
  async updateMembership(command: UpdateMembership): Promise<void> {
    const { attachmentId, membership } = command;
    if (membership === null)
      throw new BlockwireError('BW_INVALID_ARGUMENT', 'an update without a membership');
    const { io } = this.#deviceOf(attachmentId);
    await io.update(membership);
    await io.settled(membership.epoch);
  }

  /** Safe to repeat. Throws BW_ATTACHMENT_NOT_FOUND, BW_TIMEOUT. */
  async holdWrites({ attachmentId, holdMsMax }: HoldWrites): Promise<void> {
    if (holdMsMax > HOLD_MS_MAX) {
      throw new BlockwireError('BW_INVALID_ARGUMENT', `writes are held for ${HOLD_MS_MAX} ms at most`);
    }
    await this.#deviceOf(attachmentId).io.holdWrites(holdMsMax);
  }

  /** Safe to repeat. Throws BW_ATTACHMENT_NOT_FOUND, BW_TIMEOUT when writes went on before. */
  async releaseWrites({ attachmentId }: ReleaseWrites): Promise<void> {
    this.#deviceOf(attachmentId).io.releaseWrites();
  }

  #deviceOf(attachmentId: string): BlockDevice {
    const device = this.devices.find((candidate) => candidate.attachmentId === attachmentId);
    if (device !== undefined) return device;
    throw new BlockwireError('BW_ATTACHMENT_NOT_FOUND', `attachment ${attachmentId} is not here`);
  }

  async #attach(command: AttachVolume): Promise<AttachedDeviceInput> {
    const membership = membershipOf(command);
    const existing = this.#devices.get(membership.volumeId);
    if (existing !== undefined) {
      if (existing.attachmentId === command.attachmentId) return describeDevice(existing);
      throw new BlockwireError(
        'BW_VOLUME_IN_USE',
        `volume ${membership.volumeId} is attached as ${existing.path}`,
      );
    }
    const { config, log, probe } = this.#options;
    const asked = command.datapath === '' || command.datapath === 'auto' ? config.datapath : command.datapath;
    const device = await BlockDevice.create({
      ...this.#deviceOptions(command),
      datapath: chooseDatapath(probe, asked),
      ladder: chooseLadder(probe),
    });
    this.#devices.set(membership.volumeId, device);
    log.info({ volume: membership.volumeId, device: device.path, datapath: device.datapath }, 'attached');
    return describeDevice(device);
  }

  /** Null when it was detached meanwhile. */
  async #recover(leftover: Leftover, command: AttachVolume): Promise<BlockDevice | null> {
    if (this.#closing || !this.#leftovers.has(leftover.attachmentId)) return null;
    const device = await BlockDevice.recover(
      {
        ...this.#deviceOptions(command),
        datapath: leftover.datapath,
        ladder: ladderFor(leftover.info.features, chooseLadder(this.#options.probe)),
      },
      leftover.info,
    );
    this.#leftovers.delete(leftover.attachmentId);
    this.#devices.set(device.volumeId, device);
    return device;
  }

  #deviceOptions(command: AttachVolume): Omit<DeviceOptions, 'datapath' | 'ladder'> {
    const { config, log, reportLost, onFatal } = this.#options;
    const { queues, queueDepth, blockSizeBytes, readOnly, ioTimeoutMs } = command.options ?? {};
    return {
      log,
      agentId: config.id,
      attachmentId: command.attachmentId,
      volumeName: command.volumeName,
      membership: membershipOf(command),
      sizeBytes: command.sizeBytes,
      queueCount: queues || config.queues,
      queueDepth: queueDepth || config.queueDepth,
      ioSizeBytesMax: config.ioSizeBytesMax,
      blockSizeBytes: blockSizeBytes || config.blockSizeBytes,
      readOnly: readOnly ?? false,
      replicaTimeoutMs: config.replicaTimeoutMs,
      busyPollUsMax: config.busyPollUsMax,
      ioTimeoutMs: ioTimeoutMs || config.ioTimeoutMs,
      reportLost,
      onFatal,
    };
  }

  async #detach(command: DetachVolume): Promise<void> {
    const leftover = this.#leftovers.get(command.attachmentId);
    if (leftover !== undefined) {
      await removeLeftover(leftover, command.force);
      this.#leftovers.delete(command.attachmentId);
      this.#options.log.info({ volume: command.volumeId, device: leftover.path }, 'detached, not taken over');
      return;
    }
    const device = this.#devices.get(command.volumeId);
    // A late detach of an attachment that is gone must not take a newer one of the same volume.
    if (device?.attachmentId !== command.attachmentId) return;
    const { path } = device;
    await device.detach(command.force);
    this.#devices.delete(command.volumeId);
    this.#options.log.info({ volume: command.volumeId, device: path }, 'detached');
  }

  /**
   * Lets every device go, for another process of this agent to take over. Resolves with the moment from which each
   * one's I/O was held back, on the monotonic clock.
   */
  async release(): Promise<{ attachmentId: string; heldAtMs: number }[]> {
    this.#closing = true;
    await this.#commands.ended();
    return Promise.all(
      this.devices.map((device) =>
        this.#commands.run(device.volumeId, async () => {
          const heldAtMs = monotonicMs();
          await device.release();
          this.#devices.delete(device.volumeId);
          return { attachmentId: device.attachmentId, heldAtMs };
        }),
      ),
    );
  }

  /**
   * At the end of the process: devices that nobody has open go; the others stay with the kernel, their I/O waiting for
   * the next process of this agent.
   */
  async close(): Promise<void> {
    this.#closing = true;
    await Promise.all(
      this.devices.map(async (device) => {
        try {
          await device.detach(false, LAST_SYNC_MS_MAX);
        } catch (error) {
          this.#options.log.warn(
            { device: device.path, reason: toBlockwireError(error).message },
            'left behind',
          );
          await device.release();
        }
        this.#devices.delete(device.volumeId);
      }),
    );
  }
}

const IO_STATE = { ok: 'IO_STATE_OK', waiting: 'IO_STATE_WAITING', failing: 'IO_STATE_FAILING' } as const;

export function describeDevice(device: BlockDevice): AttachedDeviceInput {
  return {
    attachmentId: device.attachmentId,
    volumeId: device.volumeId,
    device: device.path,
    datapath: device.datapath,
    generation: device.io.membership.generation,
  };
}

/** The same clock in every process of this host. */
function monotonicMs(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000;
}

function membershipOf({ membership }: AttachVolume): Membership {
  if (membership === null) throw new BlockwireError('BW_INVALID_ARGUMENT', 'an attach without a membership');
  return membership;
}
