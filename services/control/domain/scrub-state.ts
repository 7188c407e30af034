/**
 * The scrub of one volume: each replica in sync is compared with one other. Pure; the last one is kept in the volume's record, so
 * that it goes on after a restart and its result can be read until the next one.
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { ScrubbedReplica, ScrubRecord, VolumeRecord } from './records.ts';
import { assertReady, inSyncReplicas } from './volume-state.ts';

/** One that failed is tried again after this, however long the interval is. */
const RETRY_MS = 3_600_000;

export interface ScrubReport {
  readonly nodeId: string;
  readonly volumeId: string;
  readonly scannedBytes: number;
  readonly mismatchedRegions: number;
  readonly repairedRegions: number;
  /** Null when everything was compared. */
  readonly error: string | null;
}

/** The scrub that is under way, or null. */
export function runningScrub({ scrub }: VolumeRecord): ScrubRecord | null {
  return scrub?.finishedAt === null ? scrub : null;
}

/** Since when a volume waits for its next scrub. */
export function scrubbedAtMs({ scrub, createdAt }: VolumeRecord): number {
  return Date.parse(scrub?.finishedAt ?? createdAt);
}

/** Whether it is time for the next one. */
export function isScrubDue(
  volume: VolumeRecord,
  { nowMs, intervalMs }: { readonly nowMs: number; readonly intervalMs: number },
): boolean {
  const { scrub, state } = volume;
  if (state === 'creating' || runningScrub(volume) !== null) return false;
  const last = scrubbedAtMs(volume);
  const hasFailed = scrub?.replicas.some(({ error }) => error !== null) ?? false;
  return nowMs >= last + (hasFailed ? Math.min(intervalMs, RETRY_MS) : intervalMs);
}

/**
 * The volume with a scrub under way. Throws BW_VOLUME_NOT_READY, and BW_CONFLICT while one is under way, or when there are no two
 * replicas in sync and online to compare.
 */
export function beginScrub(
  volume: VolumeRecord,
  { startedAt, isOnline }: { readonly startedAt: string; readonly isOnline: (nodeId: string) => boolean },
): VolumeRecord {
  assertReady(volume);
  if (runningScrub(volume) !== null) {
    throw new BlockwireError('BW_CONFLICT', `volume ${volume.id} is being scrubbed already`);
  }
  const nodeIds = inSyncReplicas(volume)
    .map(({ nodeId }) => nodeId)
    .filter(isOnline);
  if (nodeIds.length < 2) {
    throw new BlockwireError(
      'BW_CONFLICT',
      `a scrub compares replicas; volume ${volume.id} has ${nodeIds.length} in sync and online`,
    );
  }
  const replicas = nodeIds.map((nodeId, index) => ({
    nodeId,
    sourceNodeId: nodeIds[(index + 1) % nodeIds.length]!,
    ...{ isDone: false, scannedBytes: 0, mismatchedRegions: 0, repairedRegions: 0, error: null },
  }));
  return { ...volume, scrub: { startedAt, finishedAt: null, replicas } };
}

/** The volume with the result of one replica; the scrub ends with its last one. A report that nobody waits for changes nothing. */
export function recordScrub(volume: VolumeRecord, report: ScrubReport, finishedAt: string): VolumeRecord {
  const scrub = runningScrub(volume);
  const { nodeId, scannedBytes, mismatchedRegions, repairedRegions, error } = report;
  if (!scrub?.replicas.some((replica) => replica.nodeId === nodeId && !replica.isDone)) return volume;
  const replicas = scrub.replicas.map((replica): ScrubbedReplica => {
    if (replica.nodeId !== nodeId) return replica;
    return { ...replica, isDone: true, scannedBytes, mismatchedRegions, repairedRegions, error };
  });
  const isOver = replicas.every(({ isDone }) => isDone);
  return { ...volume, scrub: { ...scrub, replicas, finishedAt: isOver ? finishedAt : null } };
}
