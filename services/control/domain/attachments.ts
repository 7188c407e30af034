/** Attachments: which agent has which volume as a device. One writer a volume. */
import { BlockwireError, type ErrorCode, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Change } from '../store/store.ts';
import { commitRound } from './commit.ts';
import { type AttachAction, type Context, type DeviceReport, timestamp } from './context.ts';
import type { ControlEvent } from './events.ts';
import { installMembership, membershipOf } from './membership.ts';
import { reconcile } from './reconcile.ts';
import {
  type AgentRecord,
  type AttachmentRecord,
  type AttachmentState,
  attachments,
  type Datapath,
  DEFAULT_DEVICE_OPTIONS,
  type DeviceOptions,
  deviceTombstones,
  type VolumeRecord,
  volumes,
} from './records.ts';
import { agentOffline, chooseAgent } from './registry.ts';
import { wentStale } from './replica-events.ts';
import { doomDevice, type TombstoneCollector } from './tombstones.ts';
import { beginAttachment, endAttachment, inSyncReplicas, inUse, nextGeneration } from './volume-state.ts';
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

type AttachmentEvent = Extract<ControlEvent, { attachment: string }>;

/** How a device's I/O fares, as its agent said last. */
export type IoState = 'ok' | 'waiting' | 'failing' | 'recovering' | 'unknown';

export class Attachments {
  readonly #context: Context;
  readonly #tombstones: TombstoneCollector;
  readonly #reconciles: boolean;
  /** Attachments that this process is making: others that are not made yet were begun by one that may be gone. */
  readonly #making = new Set<string>();
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
    const { agentId, volumeId, state } = await this.#beginDetach(id, force);
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
        await this.#restore(id);
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
      const isNewlyLost = await commitRound(store, async () => {
        const found = await attachments.get(store, record.id);
        const next = found === null ? null : reconciled(found.value, served);
        if (found === null || next === null) return { changes: [], result: false };
        const type = next.state === 'lost' ? 'attachment.lost' : 'volume.attached';
        return {
          changes: [attachments.replace(record.id, found.version, next)],
          result: next.state === 'lost',
          events: next.state === found.value.state ? [] : [attachmentEvent(type, next)],
        };
      });
      if (isNewlyLost) {
        log.warn({ attachmentId: record.id, agentId }, 'the agent came back without the device');
      }
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
    const { store } = this.#context;
    const { id, agentId } = request;
    const { record, generation } = await commitRound(store, async () => {
      const found = await attachments.get(store, id);
      if (found === null || found.value.agentId !== agentId) throw attachmentNotFound(id);
      const { state, volumeId } = found.value;
      const volume = await volumes.get(store, volumeId);
      if (volume?.value.attachmentId !== id) throw attachmentNotFound(id);
      if (state === 'attaching' || state === 'detaching') {
        throw new BlockwireError('BW_CONFLICT', `attachment ${id} is ${state}; try again`);
      }
      const next = nextGeneration(volume.value);
      const { generation } = next;
      return {
        changes: [
          volumes.replace(volumeId, volume.version, next),
          attachments.replace(id, found.version, { ...found.value, generation }),
        ],
        result: { record: found.value, generation },
        events: [
          attachmentEvent('attachment.resumed', found.value),
          ...wentStale(volume.value, next, () => 'its rebuild ended with the writer'),
        ],
      };
    });
    const volume = await this.#admitWriter({ volumeId: record.volumeId, generation });
    return {
      kind: 'attach',
      attachmentId: id,
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
      if (state === 'detaching') await this.#restore(id);
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
      return await this.#change(request.id, (record) => ({
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
    const { volume, taken } = await this.#reserve(request, agentId);
    if (taken === null) return volume;
    const removal = this.#tombstones.collectAgent(taken.agentId);
    // On the same host the old device goes before the new one comes; another host may be past answering.
    if (taken.agentId === agentId) await removal;
    return volume;
  }

  /** One commit makes the attachment, raises the generation and marks what cannot be reached stale. */
  async #reserve(
    request: AttachRequest,
    agentId: string,
  ): Promise<{ readonly volume: VolumeRecord; readonly taken: AttachmentRecord | null }> {
    const { store, nodeFleet } = this.#context;
    const { id, volumeId, datapath, options, force = false } = request;
    const before = await volumes.get(store, volumeId);
    const members = before === null ? [] : inSyncReplicas(before.value);
    await Promise.all(members.map(({ nodeId }) => nodeFleet.waitOnline(nodeId)));
    return commitRound(store, async () => {
      const found = await volumes.get(store, volumeId);
      if (found === null) throw volumeNotFound(volumeId);
      const unreachableNodeIds = inSyncReplicas(found.value)
        .map(({ nodeId }) => nodeId)
        .filter((nodeId) => !nodeFleet.isOnline(nodeId));
      const taken = force ? await this.#attachmentToTake(found.value) : null;
      const free = taken === null ? found.value : endAttachment(found.value, taken.record.id);
      const volume = beginAttachment(free, { attachmentId: id, unreachableNodeIds });
      const record: AttachmentRecord = {
        id,
        volumeId,
        agentId,
        state: 'attaching',
        device: null,
        datapath,
        options,
        generation: volume.generation,
        createdAt: timestamp(this.#context),
      };
      return {
        changes: [
          volumes.replace(volumeId, found.version, volume),
          attachments.create(id, record),
          ...(taken?.changes ?? []),
        ],
        result: { volume, taken: taken?.record ?? null },
        events: [
          ...(taken === null ? [] : [attachmentEvent('attachment.taken', taken.record)]),
          attachmentEvent('volume.attaching', record),
          ...wentStale(found.value, volume, (node) =>
            unreachableNodeIds.includes(node)
              ? `node ${node} is offline`
              : 'its rebuild ended with the writer',
          ),
        ],
      };
    });
  }

  /** The attachment that a forced attach ends, and the changes that do it; null when there is none. */
  async #attachmentToTake(
    volume: VolumeRecord,
  ): Promise<{ readonly record: AttachmentRecord; readonly changes: readonly Change[] } | null> {
    if (volume.attachmentId === null) return null;
    const found = await attachments.get(this.#context.store, volume.attachmentId);
    if (found === null) return null;
    const { id, agentId, volumeId, state } = found.value;
    if (state === 'attaching' && this.#making.has(id)) {
      throw new BlockwireError('BW_CONFLICT', `attachment ${id} is still being made; try again`);
    }
    const changes = [attachments.remove(id, found.version)];
    // What is lost has no device, as its agent said.
    if (state !== 'lost') changes.push(doomDevice(this.#context, { agentId, attachmentId: id, volumeId }));
    return { record: found.value, changes };
  }

  /** The attachment as it was, now detaching unless it is lost. */
  #beginDetach(id: string, force: boolean): Promise<AttachmentRecord> {
    const { store, agentFleet } = this.#context;
    return commitRound(store, async () => {
      const found = await attachments.get(store, id);
      if (found === null) throw attachmentNotFound(id);
      const record = found.value;
      if (record.state === 'attaching' && (!force || this.#making.has(id))) {
        throw new BlockwireError('BW_CONFLICT', `attachment ${id} is still being made; try again`);
      }
      if (record.state === 'lost') return { changes: [], result: record };
      if (!force && !(await agentFleet.waitOnline(record.agentId))) throw agentOffline(record.agentId);
      if (record.state === 'detaching') return { changes: [], result: record };
      return {
        changes: [attachments.replace(id, found.version, { ...record, state: 'detaching' })],
        result: record,
        events: [attachmentEvent('volume.detaching', record)],
      };
    });
  }

  async #restore(id: string): Promise<void> {
    await this.#change(id, (record) =>
      record.state === 'detaching' ? { ...record, state: 'attached' } : record,
    ).catch((error: BlockwireError) => {
      if (error.code !== 'BW_ATTACHMENT_NOT_FOUND') throw error;
    });
  }

  /** Frees the volume. Without the agent's word a tombstone sees to the device that may be there. */
  async #remove(id: string, options: { readonly confirmed: boolean }): Promise<void> {
    const { store } = this.#context;
    const removed = await commitRound(store, async () => {
      const found = await attachments.get(store, id);
      if (found === null) return { changes: [], result: null };
      const { volumeId, agentId } = found.value;
      const changes: Change[] = [attachments.remove(id, found.version)];
      const volume = await volumes.get(store, volumeId);
      if (volume !== null) {
        changes.push(volumes.replace(volumeId, volume.version, endAttachment(volume.value, id)));
      }
      const doomed = await deviceTombstones.get(store, agentId, id);
      if (!options.confirmed && doomed === null) {
        changes.push(doomDevice(this.#context, { agentId, attachmentId: id, volumeId }));
      }
      return { changes, result: found.value, events: [attachmentEvent('volume.detached', found.value)] };
    });
    if (removed !== null && !options.confirmed) void this.#tombstones.collectAgent(removed.agentId);
  }

  #change(id: string, change: (record: AttachmentRecord) => AttachmentRecord): Promise<AttachmentRecord> {
    const { store } = this.#context;
    return commitRound(store, async () => {
      const found = await attachments.get(store, id);
      if (found === null) throw attachmentNotFound(id);
      const next = change(found.value);
      const isAttached = next.state === 'attached' && found.value.state !== 'attached';
      return {
        changes: [attachments.replace(id, found.version, next)],
        result: next,
        events: isAttached ? [attachmentEvent('volume.attached', next)] : [],
      };
    });
  }
}

function attachmentEvent(
  type: AttachmentEvent['type'],
  { id: attachment, volumeId: volume, agentId: agent }: AttachmentRecord,
): AttachmentEvent {
  return { type, volume, agent, attachment };
}

/** What an agent's list of devices makes of an attachment; null when nothing changes. */
export function reconciled(record: AttachmentRecord, served: DeviceReport | null): AttachmentRecord | null {
  // While it attaches, the command's own outcome decides.
  if (record.state === 'attaching') return null;
  if (served === null) return record.state === 'lost' ? null : { ...record, state: 'lost' };
  const state: AttachmentState = record.state === 'lost' ? 'attached' : record.state;
  const { device, datapath } = served;
  const isSame = state === record.state && device === record.device && datapath === record.datapath;
  return isSame ? null : { ...record, state, device, datapath };
}

function assertDatapath(agent: AgentRecord, datapath: Datapath): void {
  if (datapath === 'auto' || agent.datapaths.includes(datapath)) return;
  throw new BlockwireError(
    'BW_DATAPATH_UNAVAILABLE',
    `agent ${agent.id} has no ${datapath} mode; it offers: ${agent.datapaths.join(', ') || 'none'}`,
    { details: { agent: agent.id, datapaths: agent.datapaths } },
  );
}

function attachmentNotFound(id: string): BlockwireError {
  return new BlockwireError('BW_ATTACHMENT_NOT_FOUND', `there is no attachment ${id}`, {
    details: { attachment: id },
  });
}
