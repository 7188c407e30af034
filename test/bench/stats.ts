/** Medians and ratios of interleaved rounds, and when a difference counts as one. */

/** The middle value; the mean of the two middle ones. NaN for nothing. */
export function median(values: readonly number[]): number {
  if (values.length === 0) return Number.NaN;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Largest minus smallest, as a share of the median: 0.1 is 10 %. */
export function spread(values: readonly number[]): number {
  return (Math.max(...values) - Math.min(...values)) / median(values);
}

/** Gaps smaller than this factor are within what rounds differ by on an emulated machine. */
export const RESOLVED_FACTOR = 1.2;

export interface Ratio {
  /** Median of the rounds' own ratios: what drifts from round to round cancels. */
  readonly value: number;
  /** Whether the gap is a fifth or more and every round agrees on its direction. */
  readonly resolved: boolean;
  readonly rounds: number;
}

/**
 * Compares two competitors by round. Entries with the same index belong to one round; a round in which either has no
 * value (undefined) does not count. Null if no round counts.
 */
export function pairedRatio(
  values: readonly (number | undefined)[],
  baseline: readonly (number | undefined)[],
): Ratio | null {
  const ratios: number[] = [];
  for (const [round, value] of values.entries()) {
    const base = baseline[round];
    if (value !== undefined && base !== undefined && base > 0) ratios.push(value / base);
  }
  if (ratios.length === 0) return null;
  const value = median(ratios);
  const wide = value >= RESOLVED_FACTOR || value <= 1 / RESOLVED_FACTOR;
  const agreed = ratios.every((ratio) => ratio > 1) || ratios.every((ratio) => ratio < 1);
  return { value, resolved: wide && agreed, rounds: ratios.length };
}
