/**
 * What happens to attachments, one commit each: record, volume, tombstone and event together, or nothing. Whom to ask in between is
 * attachments.ts.
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Change } from '../store/store.ts';
import { commitRound } from './commit.ts';
import { type Context, type DeviceReport, timestamp } from './context.ts';
import type { ControlEvent } from './events.ts';
import {
  type AttachmentRecord,
  type AttachmentState,
  attachments,
  type Datapath,
  type DeviceOptions,
  deviceTombstones,
  type VolumeRecord,
  volumes,
} from './records.ts';
import { agentOffline } from './registry.ts';
import { wentStale } from './replica-events.ts';
import { doomDevice } from './tombstones.ts';
import { beginAttachment, endAttachment, inSyncReplicas, nextGeneration } from './volume-state.ts';
import { volumeNotFound } from './volumes.ts';

type AttachmentEvent = Extract<ControlEvent, { attachment: string }>;

/** Whether this process is making an attachment: others that are not made yet were begun by one that may be gone. */
type IsMaking = (id: string) => boolean;

export interface Reservation {
  readonly id: string;
  readonly volumeId: string;
  readonly agentId: string;
  readonly datapath: Datapath;
  readonly options: DeviceOptions;
  /** Takes the volume from the agent that has it. */
  readonly force: boolean;
}

/** One commit makes the attachment, raises the generation and marks what cannot be reached stale. */
export async function reserve(
  context: Context,
  request: Reservation,
  isMaking: IsMaking,
): Promise<{ readonly volume: VolumeRecord; readonly taken: AttachmentRecord | null }> {
  const { store, nodeFleet } = context;
  const { id, volumeId, agentId, datapath, options, force } = request;
  const before = await volumes.get(store, volumeId);
  const members = before === null ? [] : inSyncReplicas(before.value);
  await Promise.all(members.map(({ nodeId }) => nodeFleet.waitOnline(nodeId)));
  return commitRound(store, async () => {
    const found = await volumes.get(store, volumeId);
    if (found === null) throw volumeNotFound(volumeId);
    const unreachableNodeIds = inSyncReplicas(found.value)
      .map(({ nodeId }) => nodeId)
      .filter((nodeId) => !nodeFleet.isOnline(nodeId));
    const taken = force ? await attachmentToTake(context, found.value, isMaking) : null;
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
      createdAt: timestamp(context),
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
          unreachableNodeIds.includes(node) ? `node ${node} is offline` : 'its rebuild ended with the writer',
        ),
      ],
    };
  });
}

/** The attachment that a forced attach ends, and the changes that do it; null when there is none. */
async function attachmentToTake(
  context: Context,
  volume: VolumeRecord,
  isMaking: IsMaking,
): Promise<{ readonly record: AttachmentRecord; readonly changes: readonly Change[] } | null> {
  if (volume.attachmentId === null) return null;
  const found = await attachments.get(context.store, volume.attachmentId);
  if (found === null) return null;
  const { id, agentId, volumeId, state } = found.value;
  if (state === 'attaching' && isMaking(id)) {
    throw new BlockwireError('BW_CONFLICT', `attachment ${id} is still being made; try again`);
  }
  const changes = [attachments.remove(id, found.version)];
  // What is lost has no device, as its agent said.
  if (state !== 'lost') changes.push(doomDevice(context, { agentId, attachmentId: id, volumeId }));
  return { record: found.value, changes };
}

/** Raises the generation for a new process of the agent. Throws BW_ATTACHMENT_NOT_FOUND, BW_CONFLICT. */
export function resumeAttachment(
  { store }: Context,
  { id, agentId }: { readonly id: string; readonly agentId: string },
): Promise<AttachmentRecord> {
  return commitRound(store, async () => {
    const found = await attachments.get(store, id);
    if (found === null || found.value.agentId !== agentId) throw attachmentNotFound(id);
    const { state, volumeId } = found.value;
    const volume = await volumes.get(store, volumeId);
    if (volume?.value.attachmentId !== id) throw attachmentNotFound(id);
    if (state === 'attaching' || state === 'detaching') {
      throw new BlockwireError('BW_CONFLICT', `attachment ${id} is ${state}; try again`);
    }
    const next = nextGeneration(volume.value);
    const record: AttachmentRecord = { ...found.value, generation: next.generation };
    return {
      changes: [
        volumes.replace(volumeId, volume.version, next),
        attachments.replace(id, found.version, record),
      ],
      result: record,
      events: [
        attachmentEvent('attachment.resumed', record),
        ...wentStale(volume.value, next, () => 'its rebuild ended with the writer'),
      ],
    };
  });
}

/** What the attachment is by its agent's list of devices. */
export function noteServed({ store }: Context, id: string, served: DeviceReport | null): Promise<void> {
  return commitRound(store, async () => {
    const found = await attachments.get(store, id);
    const next = found === null ? null : reconciled(found.value, served);
    if (found === null || next === null) return { changes: [], result: undefined };
    const type = next.state === 'lost' ? 'attachment.lost' : 'volume.attached';
    return {
      changes: [attachments.replace(id, found.version, next)],
      result: undefined,
      events: next.state === found.value.state ? [] : [attachmentEvent(type, next)],
    };
  });
}

/** The attachment as it was, now detaching unless it is lost. */
export function beginDetach(
  context: Context,
  id: string,
  { force, isMaking }: { readonly force: boolean; readonly isMaking: IsMaking },
): Promise<AttachmentRecord> {
  const { store, agentFleet } = context;
  return commitRound(store, async () => {
    const found = await attachments.get(store, id);
    if (found === null) throw attachmentNotFound(id);
    const record = found.value;
    if (record.state === 'attaching' && (!force || isMaking(id))) {
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

/** A detach came to nothing. */
export async function restoreAttachment(context: Context, id: string): Promise<void> {
  await changeAttachment(context, id, (record) =>
    record.state === 'detaching' ? { ...record, state: 'attached' } : record,
  ).catch((error: BlockwireError) => {
    if (error.code !== 'BW_ATTACHMENT_NOT_FOUND') throw error;
  });
}

/**
 * Frees the volume. Without the agent's word a tombstone sees to the device that may be there. What was removed; null when there is
 * no such attachment.
 */
export function removeAttachment(
  context: Context,
  id: string,
  options: { readonly confirmed: boolean },
): Promise<AttachmentRecord | null> {
  const { store } = context;
  return commitRound<AttachmentRecord | null>(store, async () => {
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
      changes.push(doomDevice(context, { agentId, attachmentId: id, volumeId }));
    }
    return { changes, result: found.value, events: [attachmentEvent('volume.detached', found.value)] };
  });
}

/** Throws BW_ATTACHMENT_NOT_FOUND. */
export function changeAttachment(
  context: Context,
  id: string,
  change: (record: AttachmentRecord) => AttachmentRecord,
): Promise<AttachmentRecord> {
  const { store } = context;
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

/** What an agent's list of devices makes of an attachment; null when nothing changes. */
function reconciled(record: AttachmentRecord, served: DeviceReport | null): AttachmentRecord | null {
  // While it attaches, the command's own outcome decides.
  if (record.state === 'attaching') return null;
  if (served === null) return record.state === 'lost' ? null : { ...record, state: 'lost' };
  const state: AttachmentState = record.state === 'lost' ? 'attached' : record.state;
  const { device, datapath } = served;
  const isSame = state === record.state && device === record.device && datapath === record.datapath;
  return isSame ? null : { ...record, state, device, datapath };
}

function attachmentEvent(
  type: AttachmentEvent['type'],
  { id: attachment, volumeId: volume, agentId: agent }: AttachmentRecord,
): AttachmentEvent {
  return { type, volume, agent, attachment };
}

export function attachmentNotFound(id: string): BlockwireError {
  return new BlockwireError('BW_ATTACHMENT_NOT_FOUND', `there is no attachment ${id}`, {
    details: { attachment: id },
  });
}
