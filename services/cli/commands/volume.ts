/** `blockwire volume …`: create, list, show, attach, detach, resize, delete. */
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
    .description('create, list, show, attach, detach, resize and delete volumes');
  addCreate(volume, context);
  addList(volume, context);
  addShow(volume, context);
  addAttach(volume, context);
  addDetach(volume, context);
  addResize(volume, context);
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
      new Option('--datapath <mode>', 'data path mode')
        .choices(['auto', 'fused', 'splice', 'copy'])
        .default('auto'),
    )
    .option('--queues <count>', 'queues of the device, a thread each; at most one a CPU')
    .option('--queue-depth <count>', 'requests in flight of one queue')
    .addOption(new Option('--block-size <bytes>', 'logical block').choices(['512', '4096']))
    .option('--read-only', 'the device refuses writes')
    .option('--io-timeout <ms>', 'I/O fails when no in-sync replica answers for so long (default: it waits)')
    .action(async (ref: string, options: AttachOptions, command: Command) => {
      const asked = attachBody(options);
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      const attachment = await client.createAttachment({ volume: id, ...asked });
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

function addResize(volume: Command, { output }: Context): void {
  volume
    .command('resize')
    .description(
      'make a volume larger, also while it is attached; the file system on it is grown by its own tool',
    )
    .argument('<volume>', 'id or name')
    .requiredOption('--size <size>', 'the new size, such as 20GiB; no less than now')
    .action(async (ref: string, options: { size: string }, command: Command) => {
      const sizeBytes = parseSize(options.size);
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      const resized = await client.resizeVolume(id, sizeBytes);
      writeAnswer(output, globalOptions(command).json, resized, () => volumeText(resized, []));
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

interface AttachOptions {
  readonly agent?: string;
  readonly datapath: string;
  readonly queues?: string;
  readonly queueDepth?: string;
  readonly blockSize?: string;
  readonly readOnly?: boolean;
  readonly ioTimeout?: string;
}

/** What was asked for; the rest is the agent's choice. */
function attachBody(options: AttachOptions): Omit<CreateAttachment, 'volume'> {
  const { agent, datapath, queues, queueDepth, blockSize, readOnly, ioTimeout } = options;
  return {
    datapath,
    ...(agent === undefined ? {} : { agent }),
    ...(queues === undefined ? {} : { queues: parseCount(queues, '--queues') }),
    ...(queueDepth === undefined ? {} : { queueDepth: parseCount(queueDepth, '--queue-depth') }),
    ...(blockSize === undefined ? {} : { blockSizeBytes: Number(blockSize) }),
    ...(readOnly === undefined ? {} : { readOnly }),
    ...(ioTimeout === undefined ? {} : { ioTimeoutMs: parseMilliseconds(ioTimeout, '--io-timeout') }),
  };
}

function parseMilliseconds(text: string, option: string): number {
  if (!/^\d{1,8}$/.test(text)) throw usageError(`${option} takes milliseconds, not "${text}"`);
  return Number(text);
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
  for (const { agent, device, datapath, state, io } of attachments) {
    const trouble = io === undefined || io === 'ok' || io === 'unknown' ? '' : `I/O ${io}`;
    properties.push(['attached', [agent, device, datapath, state, trouble].filter(Boolean).join(' ')]);
  }
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
    ['I/O', attachment.io ?? 'unknown'],
  ];
}
