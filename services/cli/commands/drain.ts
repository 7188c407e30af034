/** `blockwire node drain`: the replicas of a node move to others. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { usageError } from '../errors.ts';
import { writeAnswer } from '../output.ts';
import type { StorageNode } from '../rest/schema.ts';
import { printable } from '../table.ts';
import { type Context, globalOptions, restClient } from './context.ts';

const POLL_MS = 1_000;

/** @param node the `node` command, which runs a storage node when no subcommand is given. */
export function addNodeDrain(node: Command, { output }: Context): void {
  node
    .command('drain')
    .description('move all replicas of a node to other nodes; it takes no new ones')
    .argument('<id>', 'the node')
    .option('--undo', 'let it keep its replicas, and take new ones again', false)
    .option('--wait', 'until the node is empty', false)
    .action(async (id: string, options: { undo: boolean; wait: boolean }, command: Command) => {
      const { undo, wait } = options;
      if (undo && wait) throw usageError('--undo has nothing to wait for');
      const client = restClient(command);
      let answer = undo ? await client.keepNode(id) : await client.drainNode(id);
      let last = -1;
      while (wait && (answer.replicas ?? 0) > 0) {
        if (answer.replicas !== last) output.stderr(`${text(answer)}`);
        last = answer.replicas ?? 0;
        await sleep(POLL_MS);
        answer = (await client.listNodes()).find((each) => each.id === id) ?? answer;
        // Somebody else took it back.
        if (answer.draining === false) break;
      }
      writeAnswer(output, globalOptions(command).json, answer, () => text(answer));
    });
}

function text({ id, draining, replicas = 0 }: StorageNode): string {
  if (draining !== true) return `${printable(id)} keeps its replicas\n`;
  if (replicas === 0) return `${printable(id)} is empty\n`;
  return `${printable(id)} is draining, ${replicas} ${replicas === 1 ? 'replica' : 'replicas'} left\n`;
}
