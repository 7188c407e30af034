/** What is wrong in a data directory, replica by replica; and the repair of what the data itself can tell. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import {
  allocateChecksumFile,
  CHECKSUM_BLOCK_BYTES,
  checksumFileSizeOf,
  ZERO_BLOCK_CRC,
} from './checksum-file.ts';
import { type Descriptor, readDescriptor } from './descriptor.ts';
import { dirtyRegions, RegionReader, recoverReplica, withChecksums } from './recovery.ts';
import { readRegionFile, writeRegionFile } from './region-file.ts';
import { REGION_DIRTY, REGION_INTENT, REGION_SIZE_BYTES, RegionTable } from './region-table.ts';
import {
  CHECKSUMS_FILE,
  closeReplicaFiles,
  DATA_FILE,
  dataFileSizeOf,
  openReplicaFiles,
  REGIONS_FILE,
  type ReplicaFiles,
} from './replica-files.ts';

/** ok: nothing to do. note: nothing is lost. problem: something is. repaired: it was. */
export type Severity = 'ok' | 'note' | 'problem' | 'repaired';

export interface Finding {
  /** Volume id, or volume@snapshot. */
  readonly replica: string;
  readonly severity: Severity;
  readonly what: string;
}

export interface CheckOptions {
  readonly directory: string;
  readonly repair: boolean;
  readonly log: Logger;
}

/** At most so many bad blocks of a replica are listed. */
const LISTED_MAX = 8;

/** Looks at every replica. The caller holds the directory's lock. */
export async function checkDataDirectory(options: CheckOptions): Promise<Finding[]> {
  const root = join(options.directory, 'replicas');
  const findings: Finding[] = [];
  for (const volumeId of list(root)) {
    const directory = join(root, volumeId);
    await checkReplica(directory, volumeId, null, options, findings);
    for (const name of list(join(directory, 'snapshots'))) {
      await checkReplica(join(directory, 'snapshots', name), volumeId, name, options, findings);
    }
  }
  return findings;
}

function list(directory: string): string[] {
  return existsSync(directory)
    ? readdirSync(directory)
        .filter((name) => !name.startsWith('.'))
        .sort()
    : [];
}

async function checkReplica(
  directory: string,
  volumeId: string,
  snapshot: string | null,
  options: CheckOptions,
  findings: Finding[],
): Promise<void> {
  const replica = snapshot === null ? volumeId : `${volumeId}@${snapshot}`;
  const before = findings.length;
  const find = (severity: Severity, what: string): void => void findings.push({ replica, severity, what });
  try {
    const descriptor = readDescriptor(directory);
    if (!checkFiles(directory, descriptor, options, find)) return;
    const files = openReplicaFiles(directory, volumeId, snapshot);
    try {
      await checkContent(files, options, find);
    } finally {
      closeReplicaFiles(files);
    }
  } catch (error) {
    if (!(error instanceof BlockwireError)) throw error;
    find('problem', error.message);
  }
  if (findings.length === before) find('ok', 'descriptor, region map, and every block against its checksum');
}

type Find = (severity: Severity, what: string) => void;

/** Sizes and headers. False when the replica cannot be opened as it is. */
function checkFiles(directory: string, descriptor: Descriptor, options: CheckOptions, find: Find): boolean {
  const { sizeBytes } = descriptor;
  const dataBytes = statSync(join(directory, DATA_FILE), { throwIfNoEntry: false })?.size;
  if (dataBytes === undefined || dataBytes < dataFileSizeOf(sizeBytes)) {
    const found = dataBytes === undefined ? 'is missing' : `has ${dataBytes} bytes`;
    find(
      'problem',
      `the data file ${found}, ${dataFileSizeOf(sizeBytes)} expected; copy the volume from another replica`,
    );
    return false;
  }
  const sumsPath = join(directory, CHECKSUMS_FILE);
  const sumsBytes = statSync(sumsPath, { throwIfNoEntry: false })?.size ?? 0;
  const lacksSums = sumsBytes < checksumFileSizeOf(sizeBytes);
  const regionsWrong = regionProblem(join(directory, REGIONS_FILE), sizeBytes);
  if (lacksSums && !options.repair)
    find('problem', 'the checksum file is missing or was cut; --repair computes it anew');
  if (regionsWrong !== null && !options.repair) find('problem', `${regionsWrong}; --repair makes it anew`);
  if (!lacksSums && regionsWrong === null) return true;
  if (!options.repair) return false;
  if (lacksSums) allocateChecksumFile(sumsPath, sizeBytes);
  // Every region dirty: its checksums are computed from the data. Without a map also every intent, at the newest epoch.
  const table =
    regionsWrong === null
      ? readRegionFile(join(directory, REGIONS_FILE), sizeBytes)
      : new RegionTable(sizeBytes, null);
  for (let region = 0; region < table.count; region++) {
    if (regionsWrong !== null)
      table.set(region, descriptor.epoch, REGION_INTENT | (lacksSums ? REGION_DIRTY : 0));
    else table.set(region, table.epochOf(region), table.flagsOf(region) | REGION_DIRTY);
  }
  writeRegionFile(join(directory, REGIONS_FILE), table);
  if (lacksSums)
    find('repaired', 'the checksum file was made anew: what the data file holds is taken as right');
  if (regionsWrong !== null) {
    find(
      'repaired',
      'the region map was made anew: all regions count as changed, the next resync copies all of them',
    );
  }
  return true;
}

function regionProblem(path: string, sizeBytes: number): string | null {
  try {
    readRegionFile(path, sizeBytes);
    return null;
  } catch (error) {
    return (error as Error).message.split(';')[0]!;
  }
}

async function checkContent(files: ReplicaFiles, options: CheckOptions, find: Find): Promise<void> {
  const { sizeBytes } = files.descriptor;
  let table = readRegionFile(join(files.directory, REGIONS_FILE), sizeBytes);
  const dirty = dirtyRegions(table).length;
  if (dirty > 0 && options.repair) {
    const outcome = await recoverReplica(files, options.log);
    const changed = outcome?.changed ?? 0;
    find(
      'repaired',
      `${dirty} dirty regions: checksums computed from the data, ${changed} blocks had another`,
    );
    table = readRegionFile(join(files.directory, REGIONS_FILE), sizeBytes);
  } else if (dirty > 0) {
    find('note', `not closed cleanly: checksums of ${dirty} regions would be recomputed at the next start`);
  }
  const { wrong, unreadable } = await verifyBlocks(files, table);
  if (unreadable > 0) find('problem', `${unreadable} regions of the data file cannot be read`);
  if (wrong.length > 0) {
    const offsets = wrong.slice(0, LISTED_MAX).join(', ');
    const more = wrong.length > LISTED_MAX ? ', …' : '';
    find(
      'problem',
      `${wrong.length} blocks do not match their checksums, at byte ${offsets}${more}; reads of them fail`,
    );
  }
}

/** Byte offsets of blocks that do not match, outside of dirty regions. */
async function verifyBlocks(
  files: ReplicaFiles,
  table: RegionTable,
): Promise<{ wrong: number[]; unreadable: number }> {
  const dataBytes = dataFileSizeOf(files.descriptor.sizeBytes);
  const wrong: number[] = [];
  let unreadable = 0;
  const computed = new Uint32Array(REGION_SIZE_BYTES / CHECKSUM_BLOCK_BYTES);
  const reader = new RegionReader(files);
  try {
    await withChecksums(files, async (checksums) => {
      for (let region = 0; region < table.count; region++) {
        if (table.isDirty(region)) continue;
        const offset = region * REGION_SIZE_BYTES;
        const length = Math.min(REGION_SIZE_BYTES, dataBytes - offset);
        const count = length / CHECKSUM_BLOCK_BYTES;
        const bytes = await reader.read(offset, length).catch(() => undefined);
        if (bytes === undefined) {
          unreadable++;
          continue;
        }
        if (bytes === null) computed.fill(ZERO_BLOCK_CRC, 0, count);
        else reader.checksums(count, computed);
        for (let i = 0; i < count; i++) {
          const stored = checksums[offset / CHECKSUM_BLOCK_BYTES + i]!;
          if ((computed[i]! ^ ZERO_BLOCK_CRC) >>> 0 !== stored) wrong.push(offset + i * CHECKSUM_BLOCK_BYTES);
        }
      }
    });
  } finally {
    reader.release();
  }
  return { wrong, unreadable };
}
