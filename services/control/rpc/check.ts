/** Checks of what nodes and agents send. Each throws BW_INVALID_ARGUMENT and names the field. */
import { BlockwireError } from '@blockwire/shared/errors.ts';

/** Node and agent ids, as configured; also usable as a file name and in a store key. */
const MEMBER_ID = /^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$/;
const RESOURCE_ID = /^[a-z]+-[0-9a-f]{12}$/;
const ADDRESS = /^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})$/;
const TEXT_LENGTH_MAX = 255;
export const LIST_LENGTH_MAX = 100_000;

function fail(field: string, rule: string): never {
  throw new BlockwireError('BW_INVALID_ARGUMENT', `${field} ${rule}`, { details: { field } });
}

export function checkMemberId(field: string, value: string): string {
  if (!MEMBER_ID.test(value)) fail(field, 'is 1 to 63 of a-z, 0-9, dot and hyphen, not at its ends');
  return value;
}

export function checkResourceId(field: string, value: string): string {
  if (!RESOURCE_ID.test(value)) fail(field, 'is not an id of the control plane');
  return value;
}

export function checkAddress(field: string, value: string): string {
  const port = Number(ADDRESS.exec(value)?.[2]);
  if (!(port >= 1 && port <= 65535)) fail(field, 'is not host:port');
  return value;
}

export function checkText(field: string, value: string): string {
  if (value.length > TEXT_LENGTH_MAX) fail(field, `is longer than ${TEXT_LENGTH_MAX}`);
  return value;
}

/** 64-bit fields arrive as numbers; beyond 2^53 they would have been rounded. */
export function checkInteger(field: string, value: number): number {
  if (!Number.isSafeInteger(value) || value < 0) fail(field, 'is not an integer from 0 to 2^53 - 1');
  return value;
}

export function checkList<T>(field: string, value: readonly T[]): readonly T[] {
  if (value.length > LIST_LENGTH_MAX) fail(field, `has more than ${LIST_LENGTH_MAX} entries`);
  return value;
}
