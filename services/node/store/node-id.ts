/** A data directory belongs to one node for ever: the control plane knows its replicas by that node's id. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import Type from 'typebox';
import { Value } from 'typebox/value';
import { replaceFile } from './replace-file.ts';

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
