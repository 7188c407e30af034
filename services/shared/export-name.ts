/**
 * Names of exports as nodes understand them:
 *
 *   VOLUME[@SNAPSHOT][?cap=TOKEN&epoch=E&link=L&attempt=N]
 *
 * The control plane hands out `VOLUME?cap=TOKEN` (capability.ts); who connects adds what it says of itself. Values are
 * percent-encoded, parameters stand in any order, none stands twice.
 */
import { BlockwireError } from './errors.ts';

/** NBD's limit for any string. */
export const EXPORT_NAME_BYTES_MAX = 4096;

/** Volumes, snapshots: also directories, so no path, no hidden file. */
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const COUNT = /^(0|[1-9]\d{0,15})$/;
const PARAMETERS = ['cap', 'epoch', 'link', 'attempt'] as const;

type Parameter = (typeof PARAMETERS)[number];

/** What a client says of itself when it connects; null: nothing. */
export interface SessionParameters {
  /** The membership's epoch that it goes by. */
  readonly epoch: number | null;
  /** One worker's way to this replica. */
  readonly link: string | null;
  /** Rises with every reconnection of the link; all connections of an attempt belong together. */
  readonly attempt: number | null;
}

export interface ExportName extends SessionParameters {
  readonly volumeId: string;
  readonly snapshot: string | null;
  /** The token, not verified. */
  readonly capability: string | null;
}

/** Throws BW_INVALID_ARGUMENT for anything that `formatExportName` would not write in some order. */
export function parseExportName(text: string): ExportName {
  const refuse = (reason: string): BlockwireError =>
    new BlockwireError('BW_INVALID_ARGUMENT', `not the name of an export: ${reason}`);
  if (Buffer.byteLength(text) > EXPORT_NAME_BYTES_MAX) throw refuse('longer than 4096 bytes');
  const mark = text.indexOf('?');
  const path = mark === -1 ? text : text.slice(0, mark);
  const [volumeId = '', snapshot = null, rest] = path.split('@');
  if (!ID.test(volumeId)) throw refuse('no volume id');
  if (rest !== undefined || (snapshot !== null && !ID.test(snapshot))) throw refuse('no snapshot name');
  const found = new Map<Parameter, string>();
  for (const pair of mark === -1 ? [] : text.slice(mark + 1).split('&')) {
    const [key = '', value, more] = pair.split('=');
    if (!isParameter(key)) throw refuse('an unknown parameter');
    if (!value || more !== undefined) throw refuse(`${key} has no value`);
    if (found.has(key)) throw refuse(`${key} stands twice`);
    const plain = decoded(value);
    if (plain === null) throw refuse(`${key} is not percent-encoded`);
    found.set(key, plain);
  }
  const count = (key: Parameter): number | null => {
    const value = found.get(key);
    if (value === undefined) return null;
    if (!COUNT.test(value) || !Number.isSafeInteger(Number(value))) throw refuse(`${key} is no number`);
    return Number(value);
  };
  return {
    ...{ volumeId, snapshot, capability: found.get('cap') ?? null },
    ...{ epoch: count('epoch'), link: found.get('link') ?? null, attempt: count('attempt') },
  };
}

/** Throws BW_INVALID_ARGUMENT when it becomes too long. */
export function formatExportName(name: ExportName): string {
  const { volumeId, snapshot, capability, epoch, link, attempt } = name;
  const path = snapshot === null ? volumeId : `${volumeId}@${snapshot}`;
  return withParameters(path, { cap: capability, epoch, link, attempt });
}

/** A name that was handed out, with what its user says of itself. Throws BW_INVALID_ARGUMENT when it becomes too long. */
export function addSession(name: string, session: SessionParameters): string {
  const { epoch, link, attempt } = session;
  return withParameters(name, { epoch, link, attempt });
}

function withParameters(
  name: string,
  parameters: Readonly<Partial<Record<Parameter, string | number | null>>>,
): string {
  const pairs = PARAMETERS.flatMap((key) => {
    const value = parameters[key] ?? null;
    return value === null ? [] : [`${key}=${encodeURIComponent(value)}`];
  });
  if (pairs.length === 0) return name;
  const text = `${name}${name.includes('?') ? '&' : '?'}${pairs.join('&')}`;
  if (Buffer.byteLength(text) > EXPORT_NAME_BYTES_MAX) {
    throw new BlockwireError('BW_INVALID_ARGUMENT', 'the name of the export is longer than 4096 bytes');
  }
  return text;
}

function isParameter(key: string): key is Parameter {
  return PARAMETERS.some((parameter) => parameter === key);
}

function decoded(value: string): string | null {
  try {
    return decodeURIComponent(value);
  } catch {
    return null;
  }
}
