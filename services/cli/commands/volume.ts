/** `blockwire volume …`: create, list, show, attach, detach, delete. */
import { type Command, Option } from 'commander';
import { CommandError, usageError } from '../errors.ts';
import { writeAnswer } from '../output.ts';
import type { CreateAttachment } from '../rest/client.ts';
import type { Attachment, Volume } from '../rest/schema.ts';
import { formatSize, parseSize } from '../size.ts';
import { type Column, formatProperties, formatTable } from '../table.ts';
import { type Context, globalOptions, restClient } from './context.ts';

export function addVolumeCommands(program: Command, context: Context): void {
  const volume = program
    .command('volume')
    .description('create, list, show, attach, detach and delete volumes');
  addCreate(volume, context);
  addList(volume, context);
  addShow(volume, context);
  addAttach(volume, context);
  addDetach(volume, context);
  addDelete(volume, context);
}

function addCreate(volume: Command, { output }: Context): void {
  volume
    .command('create')
    .description('make a volume')
    .argument('<name>', 'unique name')
    .requiredOption('--size <size>', 'such as 512MiB, 10GiB, 1T or bytes; units are binary (1G = 1GiB)')
    .option('--replicas <count>', 'copies, each on a node of its own', '2')
    .action(async (name: string, options: { size: string; replicas: string }, command: Command) => {
      const sizeBytes = parseSize(options.size);
      const replicas = parseCount(options.replicas, '--replicas');
      const created = await restClient(command).createVolume({ name, sizeBytes, replicas });
      writeAnswer(output, globalOptions(command).json, created, () => volumeText(created, []));
    });
}

function addList(volume: Command, { output }: Context): void {
  volume
    .command('list')
    .description('list all volumes')
    .action(async (_options: unknown, command: Command) => {
      const answer = await restClient(command).listVolumes();
      writeAnswer(output, globalOptions(command).json, answer, () => formatTable(columns, answer));
    });
}

function addShow(volume: Command, { output }: Context): void {
  volume
    .command('show')
    .description('show a volume, its replicas and where it is attached')
    .argument('<volume>', 'id or name')
    .action(async (ref: string, _options: unknown, command: Command) => {
      const client = restClient(command);
      const found = await client.findVolume(ref);
      const json = globalOptions(command).json;
      const attachments = json ? [] : await client.listAttachments(found.id);
      writeAnswer(output, json, found, () => volumeText(found, attachments));
    });
}

function addAttach(volume: Command, { output }: Context): void {
  volume
    .command('attach')
    .description('show a volume as a local disk of an agent’s host')
    .argument('<volume>', 'id or name')
    .option('--agent <id>', 'the agent; needed only where there are several')
    .addOption(
      new Option('--datapath <mode>', 'data path mode').choices(['auto', 'fused', 'copy']).default('auto'),
    )
    .action(async (ref: string, options: { agent?: string; datapath: string }, command: Command) => {
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      const body: CreateAttachment = { volume: id, datapath: options.datapath };
      const attachment = await client.createAttachment(
        options.agent === undefined ? body : { ...body, agent: options.agent },
      );
      writeAnswer(output, globalOptions(command).json, attachment, () =>
        formatProperties(attachmentProperties(attachment)),
      );
    });
}

function addDetach(volume: Command, { output }: Context): void {
  volume
    .command('detach')
    .description('take a volume away from the host it is attached to')
    .argument('<volume>', 'id or name')
    .option('--force', 'even when the device is open (mounted); its users get I/O errors', false)
    .action(async (ref: string, options: { force: boolean }, command: Command) => {
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      const attachments = await client.listAttachments(id);
      if (attachments.length === 0)
        throw new CommandError('BW_ATTACHMENT_NOT_FOUND', `volume "${ref}" is not attached`);
      for (const attachment of attachments) await client.deleteAttachment(attachment.id, options);
      const detached = attachments.map((attachment) => attachment.id);
      writeAnswer(output, globalOptions(command).json, { volume: id, detached }, () => `detached ${ref}\n`);
    });
}

function addDelete(volume: Command, { output }: Context): void {
  volume
    .command('delete')
    .description('delete a volume and its data')
    .argument('<volume>', 'id or name')
    .action(async (ref: string, _options: unknown, command: Command) => {
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      await client.deleteVolume(id);
      writeAnswer(output, globalOptions(command).json, { deleted: id }, () => `deleted ${ref} (${id})\n`);
    });
}

function parseCount(text: string, option: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text))
    throw usageError(`${option} takes a whole number from 1 on, not "${text}"`);
  return Number(text);
}

const columns: readonly Column<Volume>[] = [
  { header: 'NAME', value: ({ name }) => name },
  { header: 'ID', value: ({ id }) => id },
  { header: 'SIZE', value: ({ sizeBytes }) => formatSize(sizeBytes), align: 'right' },
  { header: 'STATE', value: stateText },
  { header: 'REPLICAS', value: replicasText },
];

function stateText(volume: Volume): string {
  return volume.degraded === true ? `${volume.state} (degraded)` : volume.state;
}

function replicasText({ replicas }: Volume): string {
  return replicas.map(({ node, state }) => (state === 'inSync' ? node : `${node} (${state})`)).join(', ');
}

function volumeText(volume: Volume, attachments: readonly Attachment[]): string {
  const properties: [string, string][] = [
    ['id', volume.id],
    ['name', volume.name],
    ['size', formatSize(volume.sizeBytes)],
    ['state', stateText(volume)],
  ];
  for (const { node, state, uri } of volume.replicas) properties.push(['replica', `${node} ${state} ${uri}`]);
  for (const { agent, device, datapath, state } of attachments)
    properties.push(['attached', [agent, device, datapath, state].filter(Boolean).join(' ')]);
  return formatProperties(properties);
}

function attachmentProperties(attachment: Attachment): [string, string][] {
  return [
    ['id', attachment.id],
    ['volume', attachment.volume],
    ['agent', attachment.agent],
    ['device', attachment.device ?? ''],
    ['datapath', attachment.datapath ?? ''],
    ['state', attachment.state],
  ];
}
