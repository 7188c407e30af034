/**
 * What a data directory says of its node. It belongs to one node for ever: the control plane knows its replicas by that
 * node's id. And once it has been in a cluster, to that cluster: its exports are opened with capabilities of its key.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PUBLIC_KEY_BYTES } from '@blockwire/shared/capability.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import Type from 'typebox';
import { Value } from 'typebox/value';
import { replaceFile } from './replace-file.ts';

const KEY_FILE = 'capability-key';

const NodeFile = Type.Object({ version: Type.Literal(1), nodeId: Type.String({ minLength: 1 }) });

/** Writes the id at the first start. Throws BW_CONFLICT when the directory is another node's, BW_IO when unreadable. */
export function keepNodeId(directory: string, nodeId: string): void {
  const path = join(directory, 'node.json');
  if (existsSync(path)) {
    const found = read(path);
    if (found === nodeId) return;
    throw new BlockwireError('BW_CONFLICT', `${directory} belongs to ${found}; start it with --id ${found}`);
  }
  replaceFile(path, `${JSON.stringify({ version: 1, nodeId })}\n`);
}

/** The raw key of the cluster that the directory belongs to; null: none so far. Throws BW_IO when it is unreadable. */
export function readCapabilityKey(directory: string): Uint8Array | null {
  const path = join(directory, KEY_FILE);
  if (!existsSync(path)) return null;
  const key = Buffer.from(readFileSync(path, 'utf8').trim(), 'base64');
  if (key.length === PUBLIC_KEY_BYTES) return key;
  throw new BlockwireError('BW_IO', `${path} is damaged; remove it, the control plane tells the key again`);
}

/** Keeps the key, durably. */
export function keepCapabilityKey(directory: string, key: Uint8Array): void {
  replaceFile(join(directory, KEY_FILE), `${Buffer.from(key).toString('base64')}\n`);
}

function read(path: string): string {
  try {
    return Value.Parse(NodeFile, JSON.parse(readFileSync(path, 'utf8'))).nodeId;
  } catch (cause) {
    throw new BlockwireError(
      'BW_IO',
      `${path} is damaged; write {"version":1,"nodeId":"ID"} with the node's id`,
      {
        cause,
      },
    );
  }
}
