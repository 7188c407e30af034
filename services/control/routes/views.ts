/** Records as REST shows them. */
import type { IoState } from '../domain/attachments.ts';
import { exportName } from '../domain/membership.ts';
import { type AttachmentRecord, DEFAULT_DEVICE_OPTIONS, type VolumeRecord } from '../domain/records.ts';
import { isDegraded } from '../domain/volume-state.ts';
import type { AttachmentView, VolumeView } from './schemas.ts';

/** @param addresses host:port of each node's NBD server, by node. */
export function volumeView(volume: VolumeRecord, addresses: ReadonlyMap<string, string>): VolumeView {
  const { id, name, sizeBytes, state, generation, epoch, attachmentId, createdAt } = volume;
  return {
    id,
    name,
    sizeBytes,
    state,
    degraded: isDegraded(volume),
    generation,
    epoch,
    replicas: volume.replicas.map((replica) => ({
      node: replica.nodeId,
      state: replica.state,
      uri: `nbd://${addresses.get(replica.nodeId)}/${exportName(volume)}`,
    })),
    attachment: attachmentId,
    createdAt,
  };
}

export function attachmentView(record: AttachmentRecord, io: IoState): AttachmentView {
  const { id, volumeId, agentId, device, datapath, state, generation, createdAt } = record;
  const options = record.options ?? DEFAULT_DEVICE_OPTIONS;
  return {
    id,
    volume: volumeId,
    agent: agentId,
    device,
    datapath,
    state,
    io,
    ...options,
    generation,
    createdAt,
  };
}
