/**
 * What a replica will keep beside its data. Both are mapped files in the replica's directory, owned by the worker that
 * owns the volume; today's replicas have neither, and the engine does not ask. They are named here so that the data
 * path that will use them (verify on read, update on write, intent before the first write) has a fixed place.
 */

/** `checksums`: one CRC32C per block of 4096 bytes. */
export interface ChecksumArray {
  /** Computes and stores the checksums of whole blocks that have just been written. */
  update(firstBlock: number, blockCount: number, memoryAt: number): void;
  /** The first block whose content does not match, or -1. */
  verify(firstBlock: number, blockCount: number, memoryAt: number): number;
}

/** `regions`: per region the epoch of its last write, and whether a write may be under way. */
export interface RegionMap {
  readonly regionSizeBytes: number;
  epochOf(region: number): number;
  hasIntent(region: number): boolean;
  /** Must be durable before the first write into the region is submitted. */
  setIntent(region: number, epoch: number): void;
  clearIntent(region: number): void;
  /** Regions with an intent get this epoch. */
  installEpoch(epoch: number): void;
}
