/** Snapshots of a replica on disk, in a directory of its own: opened with it, made, deleted, and what a clone begins with. */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { writeDescriptor } from './descriptor.ts';
import { directoriesIn, makeDirectoryAsync, takeDirectory } from './directories.ts';
import { REGION_DIRTY, type RegionTable } from './region-table.ts';
import { syncDirectory } from './replace-file.ts';
import {
  cloneReplicaFiles,
  closeReplicaFiles,
  openReplicaFiles,
  type ReplicaFiles,
  readRegions,
} from './replica-files.ts';

const SNAPSHOTS = 'snapshots';

export interface Replica extends ReplicaFiles {
  /** By name. */
  readonly snapshots: Map<string, ReplicaFiles>;
}

/** Opens all that are there. One that cannot be served is told to `onDamage`. */
export function openSnapshots(replica: Replica, onDamage: (name: string, error: unknown) => void): void {
  const root = rootOf(replica);
  for (const name of existsSync(root) ? directoriesIn(root) : []) {
    try {
      openSnapshot(replica, name);
    } catch (error) {
      onDamage(name, error);
    }
  }
}

/**
 * Of a replica whose writes are held.
 * @param sound false when operations on the data failed: checksums may not match, and are computed anew at opening
 */
export async function makeSnapshot(replica: Replica, name: string, sound: boolean): Promise<ReplicaFiles> {
  const root = rootOf(replica);
  mkdirSync(root, { recursive: true, mode: 0o700 });
  await makeDirectoryAsync(root, name, async (partial) => {
    const regions = readRegions(replica);
    // Data and checksums are copied in one state; what was not durable of the source is durable here.
    if (sound) mapEntries(regions, (epoch, flags) => [epoch, flags & ~REGION_DIRTY]);
    await cloneReplicaFiles(replica.directory, partial, replica.descriptor.sizeBytes, regions);
    writeDescriptor(partial, { ...replica.descriptor, snapshot: name, bootId: null });
  });
  syncDirectory(replica.directory);
  return openSnapshot(replica, name);
}

/** One that nobody serves any more; missing is no error. */
export function removeSnapshot(replica: Replica, name: string): void {
  const root = rootOf(replica);
  if (!existsSync(join(root, name))) return;
  const free = takeDirectory(root, name);
  const files = replica.snapshots.get(name);
  replica.snapshots.delete(name);
  if (files !== undefined) closeReplicaFiles(files);
  free();
}

/** The files of a new replica, sharing blocks with a snapshot's. What that holds counts as written in `epoch`. */
export async function cloneSnapshot(snapshot: ReplicaFiles, partial: string, epoch: number): Promise<void> {
  const regions = readRegions(snapshot);
  mapEntries(regions, (tag, flags) => (tag === 0 && flags === 0 ? [0, 0] : [epoch, flags & REGION_DIRTY]));
  await cloneReplicaFiles(snapshot.directory, partial, snapshot.descriptor.sizeBytes, regions);
}

function rootOf({ directory }: Replica): string {
  return join(directory, SNAPSHOTS);
}

function openSnapshot(replica: Replica, name: string): ReplicaFiles {
  const files = openReplicaFiles(join(rootOf(replica), name), replica.descriptor.volumeId, name);
  replica.snapshots.set(name, files);
  return files;
}

function mapEntries(table: RegionTable, entry: (epoch: number, flags: number) => [number, number]): void {
  for (let region = 0; region < table.count; region++) {
    table.set(region, ...entry(table.epochOf(region), table.flagsOf(region)));
  }
}
