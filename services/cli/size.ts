/** Sizes as people write and read them. Units are binary: 1KiB = 1K = 1024 bytes (as in truncate and qemu-img). */
import { usageError } from './errors.ts';

const UNITS = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;
const STEP = 1024;

/**
 * Bytes of `512MiB`, `10GiB`, `1T` or `4096`. Whole numbers only, no spaces, and no decimal units (`GB`): those
 * mean 10^9 to some and 2^30 to others.
 * @throws CommandError (usage)
 */
export function parseSize(text: string): number {
  const match = /^(\d+)(?:([KMGTP])(?:iB)?)?$/.exec(text);
  if (match === null) {
    const decimal = /^(\d+)([KMGTP])B$/i.exec(text);
    const hint =
      decimal === null
        ? 'write 512MiB, 10GiB, 1TiB or bytes'
        : `write ${decimal[1]}${decimal[2]!.toUpperCase()}iB`;
    throw usageError(`"${text}" is not a size: ${hint}`);
  }
  const [, digits, letter] = match;
  const exponent = letter === undefined ? 0 : UNITS.findIndex((unit) => unit.startsWith(letter)) + 1;
  const sizeBytes = Number(digits) * STEP ** exponent;
  if (sizeBytes === 0) throw usageError('a size must be greater than zero');
  if (!Number.isSafeInteger(sizeBytes)) throw usageError(`"${text}" is too large`);
  return sizeBytes;
}

/** `1073741824` as `1 GiB`; at most two decimals, rounded down, so that free space is never overstated. */
export function formatSize(sizeBytes: number): string {
  let exponent = 0;
  while (exponent < UNITS.length && sizeBytes >= STEP ** (exponent + 1)) exponent++;
  if (exponent === 0) return `${sizeBytes} B`;
  const hundredths = Math.floor((sizeBytes / STEP ** exponent) * 100);
  return `${hundredths / 100} ${UNITS[exponent - 1]}`;
}
