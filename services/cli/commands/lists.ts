/** `blockwire node list` and `blockwire agent list`. */
import type { Command } from 'commander';
import { writeAnswer } from '../output.ts';
import type { Agent, StorageNode } from '../rest/schema.ts';
import { formatSize } from '../size.ts';
import { type Column, formatTable } from '../table.ts';
import { type Context, globalOptions, restClient } from './context.ts';

const nodeColumns: readonly Column<StorageNode>[] = [
  { header: 'ID', value: ({ id }) => id },
  { header: 'STATE', value: ({ state, draining }) => (draining ? `${state} (draining)` : state) },
  { header: 'NBD', value: ({ nbd }) => nbd },
  { header: 'ZONE', value: ({ zone }) => zone ?? '' },
  { header: 'CAPACITY', value: ({ capacityBytes }) => formatSize(capacityBytes), align: 'right' },
  { header: 'FREE', value: ({ freeBytes }) => formatSize(freeBytes), align: 'right' },
  { header: 'VERSION', value: ({ version }) => version ?? '' },
];

const agentColumns: readonly Column<Agent>[] = [
  { header: 'ID', value: ({ id }) => id },
  { header: 'STATE', value: ({ state }) => state },
  { header: 'HOST', value: ({ host }) => host ?? '' },
  { header: 'DATAPATHS', value: ({ datapaths }) => (datapaths ?? []).join(', ') },
  { header: 'VERSION', value: ({ version }) => version ?? '' },
];

/** @param node the `node` command, which runs a storage node when no subcommand is given. */
export function addNodeList(node: Command, { output }: Context): void {
  node
    .command('list')
    .description('list the storage nodes that the control plane knows')
    .action(async (_options: unknown, command: Command) => {
      const answer = await restClient(command).listNodes();
      writeAnswer(output, globalOptions(command).json, answer, () => formatTable(nodeColumns, answer));
    });
}

export function addAgentList(agent: Command, { output }: Context): void {
  agent
    .command('list')
    .description('list the agents that the control plane knows')
    .action(async (_options: unknown, command: Command) => {
      const answer = await restClient(command).listAgents();
      writeAnswer(output, globalOptions(command).json, answer, () => formatTable(agentColumns, answer));
    });
}
