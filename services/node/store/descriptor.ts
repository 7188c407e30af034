/**
 * The small file that says what a replica is. Replaced atomically (replace-file.ts); anything but an old or a new one is
 * damage and is said so.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import Type, { type Static } from 'typebox';
import { Compile } from 'typebox/compile';
import type { Installed } from '../replication/admission.ts';
import { replaceFile } from './replace-file.ts';

export const DESCRIPTOR_FILE = 'descriptor.json';
export const FORMAT_VERSION = 3;

const Count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

const Text = Type.String({ minLength: 1, maxLength: 128 });

const common = {
  volumeId: Text,
  /** What clients see; the data file is rounded up to whole blocks of 4096. */
  sizeBytes: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
  /** Highest generation and epoch that were installed here. */
  generation: Count,
  epoch: Count,
  /** The snapshot's name, in a snapshot's directory; null in the replica's own. */
  snapshot: Type.Union([Type.Null(), Text]),
};

const Descriptor = Type.Object(
  {
    /** Format of the whole directory. */
    version: Type.Literal(FORMAT_VERSION),
    ...common,
    /** Of the volume's membership: replication/admission.ts. */
    role: Type.Enum(['inSync', 'rebuilding']),
    joinedEpoch: Count,
    uncleanEpoch: Type.Union([Type.Null(), Count]),
    /** The boot of the machine in which the replica was opened last; null: closed since, and everything flushed. */
    bootId: Type.Union([Type.Null(), Text]),
  },
  { additionalProperties: false },
);

/** Before memberships had roles. */
const DescriptorOfVersion2 = Type.Object(
  { version: Type.Literal(2), ...common },
  { additionalProperties: false },
);

export type Descriptor = Static<typeof Descriptor>;

const validator = Compile(Descriptor);
const validatorOfVersion2 = Compile(DescriptorOfVersion2);

/**
 * Reads and validates; an older format is upgraded, on the disk with the next change. Throws BW_REPLICA_DAMAGED with the
 * reason when it is missing, torn or not of this format.
 */
export function readDescriptor(directory: string): Descriptor {
  const damaged = (reason: string, cause?: unknown): BlockwireError =>
    new BlockwireError('BW_REPLICA_DAMAGED', `${join(directory, DESCRIPTOR_FILE)}: ${reason}`, { cause });
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(join(directory, DESCRIPTOR_FILE), 'utf8'));
  } catch (error) {
    throw damaged(error instanceof SyntaxError ? 'not JSON; torn or overwritten' : String(error), error);
  }
  if (validatorOfVersion2.Check(value)) {
    const { epoch } = value;
    return {
      ...value,
      ...{ version: FORMAT_VERSION, role: 'inSync', joinedEpoch: epoch, uncleanEpoch: null, bootId: null },
    };
  }
  if (!validator.Check(value)) {
    const [first] = validator.Errors(value);
    throw damaged(`not a descriptor of version ${FORMAT_VERSION}: ${first?.instancePath} ${first?.message}`);
  }
  return value;
}

/** What is installed of the volume's membership. */
export function installedOf(descriptor: Descriptor): Installed {
  const { generation, epoch, role, joinedEpoch, uncleanEpoch } = descriptor;
  return { generation, epoch, role, joinedEpoch, uncleanEpoch };
}

/** Replaces the descriptor so that it is durable when this returns. */
export function writeDescriptor(directory: string, descriptor: Descriptor): void {
  replaceFile(join(directory, DESCRIPTOR_FILE), `${JSON.stringify(descriptor, null, 2)}\n`);
}
