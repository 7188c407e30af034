/** `blockwire volume snapshot|snapshots|clone`. */
import type { Command } from 'commander';
import { writeAnswer } from '../output.ts';
import type { Snapshot } from '../rest/schema.ts';
import { formatSize, parseSize } from '../size.ts';
import { type Column, formatProperties, formatTable } from '../table.ts';
import { type Context, globalOptions, restClient } from './context.ts';
import { parseCount } from './count.ts';
import { volumeText } from './volume-text.ts';

export function addSnapshotCommands(volume: Command, context: Context): void {
  addSnapshot(volume, context);
  addSnapshots(volume, context);
  addClone(volume, context);
}

function addSnapshot(volume: Command, { output }: Context): void {
  volume
    .command('snapshot')
    .description('take a snapshot of one moment at all replicas in sync; writes wait meanwhile, at most 5 s')
    .argument('<volume>', 'id or name')
    .argument('<name>', 'unique among the snapshots of the volume')
    .option('--delete', 'delete it instead', false)
    .action(async (ref: string, name: string, options: { delete: boolean }, command: Command) => {
      const client = restClient(command);
      const json = globalOptions(command).json;
      const { id } = await client.findVolume(ref);
      if (options.delete) {
        await client.deleteSnapshot(id, name);
        writeAnswer(output, json, { volume: id, deleted: name }, () => `deleted ${ref}@${name}\n`);
        return;
      }
      const snapshot = await client.createSnapshot(id, name);
      writeAnswer(output, json, snapshot, () => snapshotText(snapshot));
    });
}

function addSnapshots(volume: Command, { output }: Context): void {
  volume
    .command('snapshots')
    .description('list the snapshots of a volume')
    .argument('<volume>', 'id or name')
    .action(async (ref: string, _options: unknown, command: Command) => {
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      const answer = await client.listSnapshots(id);
      writeAnswer(output, globalOptions(command).json, answer, () => formatTable(columns, answer));
    });
}

function addClone(volume: Command, { output }: Context): void {
  volume
    .command('clone')
    .description('make a new volume with the content of a snapshot, on the nodes that have it')
    .argument('<volume>', 'id or name')
    .argument('<snapshot>', 'one of its snapshots')
    .argument('<name>', 'unique name of the new volume')
    .option('--size <size>', 'such as 10GiB; no less than the snapshot, by default as much')
    .option('--replicas <count>', 'copies; by default one on each node that has the snapshot')
    .action(
      async (
        ref: string,
        snapshot: string,
        name: string,
        options: { size?: string; replicas?: string },
        command: Command,
      ) => {
        const { size, replicas } = options;
        const asked = {
          ...(size === undefined ? {} : { sizeBytes: parseSize(size) }),
          ...(replicas === undefined ? {} : { replicas: parseCount(replicas, '--replicas') }),
        };
        const client = restClient(command);
        const { id } = await client.findVolume(ref);
        const created = await client.createVolume({ name, source: { volume: id, snapshot }, ...asked });
        writeAnswer(output, globalOptions(command).json, created, () => volumeText(created, []));
      },
    );
}

const columns: readonly Column<Snapshot>[] = [
  { header: 'NAME', value: ({ name }) => name },
  { header: 'STATE', value: ({ state }) => state },
  { header: 'SIZE', value: ({ sizeBytes }) => formatSize(sizeBytes), align: 'right' },
  { header: 'NODES', value: ({ replicas }) => replicas.map(({ node }) => node).join(', ') },
  { header: 'MISSING ON', value: ({ missing }) => (missing ?? []).join(', ') },
  { header: 'CREATED', value: ({ createdAt }) => createdAt ?? '' },
];

function snapshotText({ name, state, sizeBytes, replicas, missing = [] }: Snapshot): string {
  const properties: [string, string][] = [
    ['name', name],
    ['state', state],
    ['size', formatSize(sizeBytes)],
  ];
  for (const { node, uri } of replicas) properties.push(['replica', `${node} ${uri}`]);
  for (const node of missing) properties.push(['missing', `${node} was not in sync`]);
  return formatProperties(properties);
}
