/** Records as REST shows them. */
import type { IoState } from '../domain/attachments.ts';
import type { ExportNames } from '../domain/capabilities.ts';
import type { RebuildProgress } from '../domain/rebuild-progress.ts';
import {
  type AttachmentRecord,
  DEFAULT_DEVICE_OPTIONS,
  type ScrubRecord,
  type VolumeRecord,
} from '../domain/records.ts';
import type { TakenSnapshot } from '../domain/snapshots.ts';
import { isDegraded } from '../domain/volume-state.ts';
import type { AttachmentView, SnapshotView, VolumeView } from './schemas.ts';

export interface ViewSources {
  /** host:port of each node's NBD server, by node. */
  readonly addresses: ReadonlyMap<string, string>;
  readonly exportNames: ExportNames;
  readonly progress: Pick<RebuildProgress, 'of'>;
}

/**
 * Any NBD client opens the addresses. While the volume is attached they are good for reading only, since its agent is the
 * one writer.
 */
export function volumeView(
  volume: VolumeRecord,
  { addresses, exportNames, progress }: ViewSources,
): VolumeView {
  const { id, name, sizeBytes, state, generation, epoch, attachmentId, createdAt } = volume;
  const exportName = exportNames.nameOf(volume, attachmentId === null ? 'client' : 'reader');
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
      uri: `nbd://${addresses.get(replica.nodeId)}/${encodeURIComponent(exportName)}`,
      rebuild: progress.of(volume, replica),
      replaces: replica.replaces ?? null,
    })),
    scrub: scrubView(volume.scrub),
    attachment: attachmentId,
    createdAt,
  };
}

function scrubView(scrub: ScrubRecord | undefined): VolumeView['scrub'] {
  if (scrub === undefined) return null;
  const { startedAt, finishedAt } = scrub;
  const replicas = scrub.replicas.map(
    ({ nodeId: node, scannedBytes, mismatchedRegions, repairedRegions, error }) => ({
      ...{ node, scannedBytes, mismatchedRegions, repairedRegions, error },
    }),
  );
  return { startedAt, finishedAt, replicas };
}

/** The addresses are good for reading only: a snapshot never changes. */
export function snapshotView(
  { volume, snapshot }: TakenSnapshot,
  { addresses, exportNames }: Pick<ViewSources, 'addresses' | 'exportNames'>,
): SnapshotView {
  const { name, state, sizeBytes, epoch, nodeIds, createdAt } = snapshot;
  const exportName = encodeURIComponent(exportNames.nameOf(volume, 'reader', name));
  return {
    ...{ volume: volume.id, name, state, sizeBytes, epoch },
    replicas: nodeIds.map((node) => ({ node, uri: `nbd://${addresses.get(node)}/${exportName}` })),
    missing: volume.replicas.map(({ nodeId }) => nodeId).filter((nodeId) => !nodeIds.includes(nodeId)),
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
