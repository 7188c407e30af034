/** Attachments: which agent has which volume as a device. One writer a volume. */
import { BlockwireError, type ErrorCode, toBlockwireError } from '@blockwire/shared/errors.ts';
import {
  attachmentNotFound,
  beginDetach,
  changeAttachment,
  noteServed,
  removeAttachment,
  reserve,
  restoreAttachment,
  resumeAttachment,
} from './attachment-commits.ts';
import type { AttachAction, Context, DeviceReport } from './context.ts';
import { installMembership, membershipOf } from './membership.ts';
import { reconcile } from './reconcile.ts';
import {
  type AgentRecord,
  type AttachmentRecord,
  attachments,
  type Datapath,
  DEFAULT_DEVICE_OPTIONS,
  type DeviceOptions,
  deviceTombstones,
  type VolumeRecord,
  volumes,
} from './records.ts';
import { chooseAgent } from './registry.ts';
import type { TombstoneCollector } from './tombstones.ts';
import { inUse } from './volume-state.ts';
import { volumeNotFound } from './volumes.ts';

/** After these the command may still be carried out, or have been: the device's fate is unknown. */
const UNKNOWN_OUTCOME: readonly ErrorCode[] = [
  'BW_TIMEOUT',
  'BW_AGENT_OFFLINE',
  'BW_SHUTTING_DOWN',
  'BW_INTERNAL',
];

export interface AttachRequest {
  /** Chosen by the caller, so that a repeated request can find what the first one made. */
  readonly id: string;
  readonly volumeId: string;
  readonly agentId?: string | undefined;
  readonly datapath: Datapath;
  readonly options: DeviceOptions;
  /** Takes the volume from the agent that has it. */
  readonly force?: boolean;
}

/** How a device's I/O fares, as its agent said last. */
export type IoState = 'ok' | 'waiting' | 'failing' | 'recovering' | 'unknown';

export class Attachments {
  readonly #context: Context;
  readonly #tombstones: TombstoneCollector;
  readonly #reconciles: boolean;
  /** Attachments that this process is making: others that are not made yet were begun by one that may be gone. */
  readonly #making = new Set<string>();
  readonly #isMaking = (id: string): boolean => this.#making.has(id);
  /** By agent: what its last heartbeat said of each attachment. Not stored: it is true only now. */
  readonly #io = new Map<string, ReadonlyMap<string, IoState>>();

  /** @param options reconciles: false leaves replicas as a dead writer left them, for the simulator's own test */
  constructor(
    context: Context,
    tombstones: TombstoneCollector,
    options: { readonly reconciles: boolean } = { reconciles: true },
  ) {
    this.#context = context;
    this.#tombstones = tombstones;
    this.#reconciles = options.reconciles;
  }

  /** Throws BW_ATTACHMENT_NOT_FOUND. */
  async get(id: string): Promise<AttachmentRecord> {
    const found = await attachments.get(this.#context.store, id);
    if (found === null) throw attachmentNotFound(id);
    return found.value;
  }

  async list(): Promise<AttachmentRecord[]> {
    return (await attachments.list(this.#context.store)).map(({ value }) => value);
  }

  /**
   * Gives the volume to an agent: next generation, installed at every in-sync replica that can be reached (the
   * others go stale), then the device. On failure the volume is free again; its generation stays raised.
   *
   * With `force` the volume is taken from the agent that has it: the same commit removes that attachment and dooms its
   * device. The installed generation keeps the old agent out, whether it hears of it or not, before the new one begins.
   *
   * Throws BW_VOLUME_NOT_FOUND, BW_VOLUME_IN_USE, BW_VOLUME_NOT_READY, BW_NO_IN_SYNC_REPLICA, BW_CONFLICT when another
   * attach is under way, BW_DATAPATH_UNAVAILABLE, the errors of `chooseAgent`, or the agent's.
   */
  async attach(request: AttachRequest): Promise<AttachmentRecord> {
    this.#making.add(request.id);
    try {
      return await this.#attach(request);
    } finally {
      this.#making.delete(request.id);
    }
  }

  /**
   * Takes the device from the agent and frees the volume. With `force` it always ends: a device that is open is
   * taken away, and an agent that does not answer is told when it is back, while the next attach fences it.
   *
   * Throws BW_ATTACHMENT_NOT_FOUND, BW_AGENT_OFFLINE, BW_DEVICE_BUSY, BW_CONFLICT during an attach.
   */
  async detach(id: string, options: { readonly force: boolean }): Promise<void> {
    const { force } = options;
    const { agentFleet, timing } = this.#context;
    const { agentId, volumeId, state } = await beginDetach(this.#context, id, {
      ...{ force, isMaking: this.#isMaking },
    });
    if (state === 'lost') {
      await this.#remove(id, { confirmed: true });
      return;
    }
    try {
      await agentFleet.dispatch(
        agentId,
        { kind: 'detach', attachmentId: id, volumeId, force },
        { deadlineMs: timing.detachMs },
      );
    } catch (thrown) {
      const error = toBlockwireError(thrown);
      if (!force) {
        await restoreAttachment(this.#context, id);
        throw error;
      }
      this.#context.log.warn({ id, agentId, code: error.code, reason: error.message }, 'detached by force');
      await this.#remove(id, { confirmed: false });
      return;
    }
    await this.#remove(id, { confirmed: true });
  }

  /**
   * An agent is back with these devices. An attachment whose device it does not serve is `lost`: it stays until
   * somebody deletes it, so that the loss is seen and the volume is not given away meanwhile.
   */
  async reconcile(agentId: string, devices: readonly DeviceReport[]): Promise<void> {
    const { store, log } = this.#context;
    const known = await attachments.list(store);
    for (const { attachmentId, volumeId, device } of devices) {
      if (known.some(({ value }) => value.id === attachmentId)) continue;
      // Removed only if a tombstone says so: a store that forgot must not take a disk from a running system.
      log.warn(
        { agentId, attachmentId, volumeId, device },
        'the agent serves a device of no known attachment',
      );
    }
    for (const { value: record } of known) {
      if (record.agentId !== agentId) continue;
      const served = devices.find(({ attachmentId }) => attachmentId === record.id) ?? null;
      await noteServed(this.#context, record.id, served);
    }
  }

  /**
   * A new process of the agent takes over the device of this attachment. The next generation is installed at every
   * replica first: it cuts the connections of the old process, whose last writes could otherwise arrive after newer ones.
   *
   * Throws BW_ATTACHMENT_NOT_FOUND when the device is nobody's any more, BW_CONFLICT while the attachment is being made
   * or taken away, and what installMembership throws.
   */
  async resume(request: { readonly agentId: string; readonly id: string }): Promise<AttachAction> {
    const record = await resumeAttachment(this.#context, request);
    const { volumeId, generation } = record;
    const volume = await this.#admitWriter({ volumeId, generation });
    return {
      kind: 'attach',
      attachmentId: record.id,
      membership: await membershipOf(this.#context, volume),
      sizeBytes: volume.sizeBytes,
      datapath: 'auto',
      volumeName: volume.name,
      options: record.options ?? DEFAULT_DEVICE_OPTIONS,
    };
  }

  /** What an agent's heartbeat says of its devices. */
  noteIo(agentId: string, states: ReadonlyMap<string, IoState>): void {
    this.#io.set(agentId, states);
  }

  /** How the device's I/O fares; `unknown` while its agent is away. */
  ioOf({ id, agentId, state }: AttachmentRecord): IoState {
    if (state !== 'attached' || !this.#context.agentFleet.isOnline(agentId)) return 'unknown';
    return this.#io.get(agentId)?.get(id) ?? 'unknown';
  }

  /** At start: no attach or detach of an earlier process goes on. Its agent tells the rest when it registers. */
  async recover(): Promise<void> {
    for (const { id, state } of await this.list()) {
      if (state === 'attaching') await this.#remove(id, { confirmed: false });
      if (state === 'detaching') await restoreAttachment(this.#context, id);
    }
  }

  async #attach(request: AttachRequest): Promise<AttachmentRecord> {
    const { store, agentFleet, timing } = this.#context;
    const found = await volumes.get(store, request.volumeId);
    if (found === null) throw volumeNotFound(request.volumeId);
    if (found.value.attachmentId !== null && !request.force) throw inUse(found.value);
    const agent = await chooseAgent(this.#context, request.agentId);
    assertDatapath(agent, request.datapath);
    // A device of an earlier attachment must be gone before its volume may come back to the same agent.
    const doomed = await deviceTombstones.list(store, agent.id);
    if (doomed.length > 0) await this.#tombstones.collectAgent(agent.id);

    const { generation } = await this.#takeOver(request, agent.id);
    let sent = false;
    try {
      const volume = await this.#admitWriter({ volumeId: request.volumeId, generation });
      const membership = await membershipOf(this.#context, volume);
      sent = true;
      const device = await agentFleet.dispatch(
        agent.id,
        {
          kind: 'attach',
          attachmentId: request.id,
          membership,
          sizeBytes: volume.sizeBytes,
          datapath: request.datapath,
          volumeName: volume.name,
          options: request.options,
        },
        { deadlineMs: timing.attachMs },
      );
      if (device === null) {
        throw new BlockwireError('BW_ATTACH_FAILED', `agent ${agent.id} answered without a device`);
      }
      return await changeAttachment(this.#context, request.id, (record) => ({
        ...record,
        state: 'attached',
        device: device.device,
        datapath: device.datapath,
      }));
    } catch (thrown) {
      const error = toBlockwireError(thrown);
      const isUnknown = sent && UNKNOWN_OUTCOME.includes(error.code);
      await this.#remove(request.id, { confirmed: !isUnknown });
      throw error;
    }
  }

  /** From here on no earlier writer writes, and all in-sync replicas are equal. */
  #admitWriter(target: { readonly volumeId: string; readonly generation: number }): Promise<VolumeRecord> {
    return this.#reconciles ? reconcile(this.#context, target) : installMembership(this.#context, target);
  }

  /** The volume reserved; an agent that had it is told to remove its device. */
  async #takeOver(request: AttachRequest, agentId: string): Promise<VolumeRecord> {
    const reservation = { ...request, agentId, force: request.force ?? false };
    const { volume, taken } = await reserve(this.#context, reservation, this.#isMaking);
    if (taken === null) return volume;
    const removal = this.#tombstones.collectAgent(taken.agentId);
    // On the same host the old device goes before the new one comes; another host may be past answering.
    if (taken.agentId === agentId) await removal;
    return volume;
  }

  async #remove(id: string, options: { readonly confirmed: boolean }): Promise<void> {
    const removed = await removeAttachment(this.#context, id, options);
    if (removed !== null && !options.confirmed) void this.#tombstones.collectAgent(removed.agentId);
  }
}

function assertDatapath(agent: AgentRecord, datapath: Datapath): void {
  if (datapath === 'auto' || agent.datapaths.includes(datapath)) return;
  throw new BlockwireError(
    'BW_DATAPATH_UNAVAILABLE',
    `agent ${agent.id} has no ${datapath} mode; it offers: ${agent.datapaths.join(', ') || 'none'}`,
    { details: { agent: agent.id, datapaths: agent.datapaths } },
  );
}
