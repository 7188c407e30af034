/**
 * The small file that says what a replica is. Replaced atomically (replace-file.ts); anything but an old or a new one is
 * damage and is said so.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import Type, { type Static } from 'typebox';
import { Compile } from 'typebox/compile';
import { replaceFile } from './replace-file.ts';

export const DESCRIPTOR_FILE = 'descriptor.json';
export const FORMAT_VERSION = 2;

const Count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

const Descriptor = Type.Object(
  {
    /** Format of the whole directory. */
    version: Type.Literal(FORMAT_VERSION),
    volumeId: Type.String({ minLength: 1, maxLength: 128 }),
    /** What clients see; the data file is rounded up to whole blocks of 4096. */
    sizeBytes: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
    /** Highest generation and epoch that were installed here. */
    generation: Count,
    epoch: Count,
    /** The snapshot's name, in a snapshot's directory; null in the replica's own. */
    snapshot: Type.Union([Type.Null(), Type.String({ minLength: 1, maxLength: 128 })]),
  },
  { additionalProperties: false },
);

export type Descriptor = Static<typeof Descriptor>;

const validator = Compile(Descriptor);

/** Reads and validates. Throws BW_REPLICA_DAMAGED with the reason when it is missing, torn or not of this format. */
export function readDescriptor(directory: string): Descriptor {
  const damaged = (reason: string, cause?: unknown): BlockwireError =>
    new BlockwireError('BW_REPLICA_DAMAGED', `${join(directory, DESCRIPTOR_FILE)}: ${reason}`, { cause });
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(join(directory, DESCRIPTOR_FILE), 'utf8'));
  } catch (error) {
    throw damaged(error instanceof SyntaxError ? 'not JSON; torn or overwritten' : String(error), error);
  }
  if (!validator.Check(value)) {
    const [first] = validator.Errors(value);
    throw damaged(`not a descriptor of version ${FORMAT_VERSION}: ${first?.instancePath} ${first?.message}`);
  }
  return value;
}

/** Replaces the descriptor so that it is durable when this returns. */
export function writeDescriptor(directory: string, descriptor: Descriptor): void {
  replaceFile(join(directory, DESCRIPTOR_FILE), `${JSON.stringify(descriptor, null, 2)}\n`);
}
