/** The file `regions` as the store reads and writes it: at creation, opening, closing and resize. Layout: region-table.ts. */
import {
  closeSync,
  constants,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  writeSync,
} from 'node:fs';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import {
  checkRegionHeader,
  encodeRegionHeader,
  PAGE_SIZE_BYTES,
  PAGE_WORDS,
  REGION_DIRTY,
  RegionTable,
  regionCountOf,
  regionFileSizeOf,
  regionPageOffset,
} from './region-table.ts';

/** Reads the table. Throws BW_REPLICA_DAMAGED when the file is not one, or was cut. */
export function readRegionFile(path: string, sizeBytes: number): RegionTable {
  const damaged = (reason: string): BlockwireError =>
    new BlockwireError(
      'BW_REPLICA_DAMAGED',
      `${path}: ${reason}; \`blockwire node check --repair\` rebuilds it`,
    );
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (error) {
    throw damaged((error as Error).message);
  }
  try {
    const size = regionFileSizeOf(sizeBytes);
    const found = fstatSync(fd).size;
    const bytes = new Uint8Array(size);
    readFully(fd, bytes);
    const wrong = checkRegionHeader(
      bytes.subarray(0, Math.min(found, PAGE_SIZE_BYTES)),
      regionCountOf(sizeBytes),
    );
    if (wrong !== null) throw damaged(wrong);
    if (found < size) throw damaged('it was cut');
    return new RegionTable(sizeBytes, new Uint32Array(bytes.buffer, PAGE_SIZE_BYTES));
  } finally {
    closeSync(fd);
  }
}

/**
 * Makes the file, or lengthens it, with this table; durable. Really written, not only sparse: pages are then replaced in
 * place, and need no space.
 */
export function writeRegionFile(path: string, table: RegionTable): void {
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    writeSync(fd, encodeRegionHeader(table.count), 0, PAGE_SIZE_BYTES, 0);
    const bytes = new Uint8Array(table.words.buffer);
    for (let at = 0; at < bytes.length; )
      at += writeSync(fd, bytes, at, bytes.length - at, PAGE_SIZE_BYTES + at);
    ftruncateSync(fd, PAGE_SIZE_BYTES + bytes.length);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Lengthens the file of a served volume: pages that its worker writes are not touched. Durable. */
export function growRegionFile(path: string, sizeBytes: number): void {
  const fd = openSync(path, 'r+');
  try {
    const wanted = regionFileSizeOf(sizeBytes);
    const zeroes = new Uint8Array(PAGE_SIZE_BYTES);
    for (let at = fstatSync(fd).size; at < wanted; ) at += writeSync(fd, zeroes, 0, zeroes.length, at);
    fsyncSync(fd);
    writeSync(fd, encodeRegionHeader(regionCountOf(sizeBytes)), 0, PAGE_SIZE_BYTES, 0);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Clears DIRTY of every region; everything that the bit stood for must be durable. Returns how many had it. */
export function markRegionFileClean(path: string, sizeBytes: number): number {
  const table = readRegionFile(path, sizeBytes);
  const pages = new Set<number>();
  let cleared = 0;
  for (let region = 0; region < table.count; region++) {
    if (!table.isDirty(region)) continue;
    table.set(region, table.epochOf(region), table.flagsOf(region) & ~REGION_DIRTY);
    pages.add(Math.floor((region * 2) / PAGE_WORDS));
    cleared++;
  }
  if (cleared > 0) writeRegionPages(path, table, pages);
  return cleared;
}

/** Writes some pages of the table, durably. */
export function writeRegionPages(path: string, table: RegionTable, pages: Iterable<number>): void {
  const fd = openSync(path, 'r+');
  try {
    for (const page of pages) {
      writeSync(
        fd,
        new Uint8Array(table.words.buffer, page * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES),
        0,
        PAGE_SIZE_BYTES,
        regionPageOffset(page),
      );
    }
    fdatasyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function readFully(fd: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) {
    const count = readSync(fd, bytes, at, bytes.length - at, at);
    if (count === 0) return;
    at += count;
  }
}
