/** How fast blocks are checksummed, by each method that this CPU has: `node test/bench/checksums.ts`. The best of many rounds. */
import { allocateRegion } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';

const BLOCK_BYTES = 4096;
const ROUNDS = 200;
/** Each round covers at least this much, so that its time is well above the clock's grain. */
const ROUND_BYTES = 4 * 2 ** 20;
const METHODS = ['folding', 'instruction', 'table'];

for (const sizeBytes of [16 * 1024, 512 * 1024, 16 * 2 ** 20]) {
  const region = allocateRegion(sizeBytes);
  region.bytes.fill(0xa5);
  const count = sizeBytes / BLOCK_BYTES;
  const addresses = Float64Array.from({ length: count }, (_, i) => region.address + i * BLOCK_BYTES);
  const out = new Uint32Array(count);
  const repeats = Math.max(1, ROUND_BYTES / sizeBytes);
  for (const [method, name] of METHODS.entries()) {
    if (!native.crc32cBlocksBy(addresses, count, BLOCK_BYTES, out, method)) continue;
    let bestMs = Number.POSITIVE_INFINITY;
    for (let round = 0; round < ROUNDS; round++) {
      const startMs = performance.now();
      for (let i = 0; i < repeats; i++) native.crc32cBlocksBy(addresses, count, BLOCK_BYTES, out, method);
      bestMs = Math.min(bestMs, (performance.now() - startMs) / repeats);
    }
    const gigabytesPerSecond = sizeBytes / bestMs / 1e6;
    const microseconds = bestMs * 1000;
    process.stdout.write(
      `${sizeBytes / 1024} KiB, ${name}: ${gigabytesPerSecond.toFixed(1)} GB/s, ${microseconds.toFixed(1)} us\n`,
    );
  }
  region.release();
}
