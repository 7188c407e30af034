/** Whole numbers on the command line. */
import { usageError } from '../errors.ts';

/** From 1 to 9999. Throws a usage error that names the option. */
export function parseCount(text: string, option: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text))
    throw usageError(`${option} takes a whole number from 1 on, not "${text}"`);
  return Number(text);
}
