/**
 * The file `checksums`: a CRC32C for each block of 4096 bytes, as 32-bit little-endian words, padded to whole pages.
 * Stored is crc ^ crc-of-a-zero-block, so that a file of zeroes describes data of zeroes.
 *
 * The data worker maps it, and a page fault that finds no space would end the process (SIGBUS); so its blocks are
 * allocated when it is made, and it is copied, never shared, for snapshots and clones.
 */
import { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { native } from '@blockwire/native/native.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';

export const CHECKSUM_BLOCK_BYTES = 4096;
const PAGE_SIZE_BYTES = 4096;
const ZEROES_BYTES = 1024 * 1024;
const ENOSPC = 28;

/** CRC32C of 4096 zero bytes. */
export const ZERO_BLOCK_CRC = native.crc32c(new Uint8Array(CHECKSUM_BLOCK_BYTES), 0);

export function blockCountOf(sizeBytes: number): number {
  return Math.ceil(sizeBytes / CHECKSUM_BLOCK_BYTES);
}

/** Bytes of the file `checksums` of a volume of this size. */
export function checksumFileSizeOf(sizeBytes: number): number {
  return Math.ceil((blockCountOf(sizeBytes) * 4) / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES;
}

/** Makes or lengthens the file, all of it allocated and durable. Throws ENOSPC as BW_NOT_ENOUGH_SPACE. */
export function allocateChecksumFile(path: string, sizeBytes: number): void {
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    const wanted = checksumFileSizeOf(sizeBytes);
    const found = fstatSync(fd).size;
    if (found >= wanted) return;
    const result = native.fallocate(fd, 0, 0, wanted);
    if (result === -ENOSPC) {
      ftruncateSync(fd, found);
      throw new BlockwireError('BW_NOT_ENOUGH_SPACE', `no space for the ${wanted} bytes of ${path}`);
    }
    if (result < 0) writeZeroes(fd, found, wanted);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** What fallocate does, on file systems that have none. */
function writeZeroes(fd: number, from: number, to: number): void {
  const zeroes = new Uint8Array(ZEROES_BYTES);
  for (let at = from; at < to; ) at += writeSync(fd, zeroes, 0, Math.min(ZEROES_BYTES, to - at), at);
}
