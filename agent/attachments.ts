/** The volumes that are attached to this host, and the commands that attach and detach them. */
import type {
  AttachedDeviceInput,
  AttachVolume,
  DetachVolume,
  Membership,
} from '@blockwire/proto/control/types.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { AgentConfig } from './config.ts';
import { chooseLadder } from './datapath/ladder.ts';
import { chooseDatapath, type HostProbe } from './datapath/probe.ts';
import { BlockDevice, type DeviceOptions } from './device.ts';

export interface AttachmentsOptions {
  readonly log: Logger;
  readonly config: AgentConfig;
  readonly probe: () => Promise<HostProbe>;
  readonly reportLost: DeviceOptions['reportLost'];
}

export class Attachments {
  readonly #options: AttachmentsOptions;
  /** By volume id: a volume is attached once. */
  readonly #devices = new Map<string, BlockDevice>();
  /** By volume id: the last command that was taken on. */
  readonly #underWay = new Map<string, Promise<unknown>>();

  constructor(options: AttachmentsOptions) {
    this.#options = options;
  }

  get devices(): readonly BlockDevice[] {
    return [...this.#devices.values()];
  }

  /** Safe to repeat: an attachment that exists is answered as it is. */
  attach(command: AttachVolume): Promise<AttachedDeviceInput> {
    return this.#inOrder(command.membership?.volumeId ?? '', () => this.#attach(command));
  }

  /** Safe to repeat: an attachment that is not here is no error. */
  detach(command: DetachVolume): Promise<void> {
    return this.#inOrder(command.volumeId, () => this.#detach(command));
  }

  /** Commands about one volume run one after the other; those about different volumes do not wait for each other. */
  #inOrder<T>(volumeId: string, step: () => Promise<T>): Promise<T> {
    const before = this.#underWay.get(volumeId) ?? Promise.resolve();
    const outcome = before.then(step, step);
    this.#underWay.set(volumeId, outcome);
    const forget = (): void => {
      if (this.#underWay.get(volumeId) === outcome) this.#underWay.delete(volumeId);
    };
    outcome.then(forget, forget);
    return outcome;
  }

  async #attach(command: AttachVolume): Promise<AttachedDeviceInput> {
    const membership: Membership | null = command.membership;
    if (membership === null)
      throw new BlockwireError('BW_INVALID_ARGUMENT', 'an attach without a membership');
    const existing = this.#devices.get(membership.volumeId);
    if (existing !== undefined) {
      if (existing.attachmentId === command.attachmentId) return describeDevice(existing);
      throw new BlockwireError(
        'BW_VOLUME_IN_USE',
        `volume ${membership.volumeId} is attached as ${existing.path}`,
      );
    }
    const { config, log } = this.#options;
    const probe = await this.#options.probe();
    const asked = command.datapath === '' || command.datapath === 'auto' ? config.datapath : command.datapath;
    const device = await BlockDevice.create({
      log,
      attachmentId: command.attachmentId,
      volumeName: command.volumeName,
      membership,
      sizeBytes: command.sizeBytes,
      datapath: chooseDatapath(probe, asked),
      ladder: chooseLadder(probe),
      queueDepth: config.queueDepth,
      ioSizeBytesMax: config.ioSizeBytesMax,
      replicaTimeoutMs: config.replicaTimeoutMs,
      reportLost: this.#options.reportLost,
    });
    this.#devices.set(membership.volumeId, device);
    log.info({ volume: membership.volumeId, device: device.path, datapath: device.datapath }, 'attached');
    return describeDevice(device);
  }

  async #detach(command: DetachVolume): Promise<void> {
    const device = this.#devices.get(command.volumeId);
    // A late detach of an attachment that is gone must not take a newer one of the same volume.
    if (device?.attachmentId !== command.attachmentId) return;
    const { path } = device;
    await device.detach(command.force);
    this.#devices.delete(command.volumeId);
    this.#options.log.info({ volume: command.volumeId, device: path }, 'detached');
  }

  /**
   * At the end of the process: devices that nobody has open go; the others stay with the kernel, their I/O waiting
   * (USER_RECOVERY).
   */
  async close(): Promise<void> {
    for (const device of this.devices) {
      await device.detach(false).then(
        () => this.#devices.delete(device.volumeId),
        (error: unknown) =>
          this.#options.log.warn({ err: error, device: device.path }, 'the device is left behind'),
      );
    }
  }
}

export function describeDevice(device: BlockDevice): AttachedDeviceInput {
  return {
    attachmentId: device.attachmentId,
    volumeId: device.volumeId,
    device: device.path,
    datapath: device.datapath,
    generation: device.membership.generation,
  };
}
