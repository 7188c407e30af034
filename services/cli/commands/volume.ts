/** `blockwire volume …`: create, list, show, attach, detach, resize, scrub, promote, delete; snapshot.ts has the rest. */
import { type Command, Option } from 'commander';
import { CommandError, usageError } from '../errors.ts';
import { writeAnswer } from '../output.ts';
import type { CreateAttachment } from '../rest/client.ts';
import { parseSize } from '../size.ts';
import { formatProperties, formatTable } from '../table.ts';
import { type Context, globalOptions, restClient } from './context.ts';
import { parseCount } from './count.ts';
import { addSnapshotCommands } from './snapshot.ts';
import { attachmentProperties, volumeColumns, volumeText } from './volume-text.ts';

export function addVolumeCommands(program: Command, context: Context): void {
  const volume = program
    .command('volume')
    .description('create, list, show, attach, detach, resize, snapshot, clone and delete volumes');
  addCreate(volume, context);
  addList(volume, context);
  addShow(volume, context);
  addAttach(volume, context);
  addDetach(volume, context);
  addResize(volume, context);
  addScrub(volume, context);
  addPromote(volume, context);
  addDelete(volume, context);
  addSnapshotCommands(volume, context);
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
      writeAnswer(output, globalOptions(command).json, answer, () => formatTable(volumeColumns, answer));
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
    .option('--force', 'take it from the agent that has it; that one is kept out from then on')
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

function addScrub(volume: Command, { output }: Context): void {
  volume
    .command('scrub')
    .description(
      'begin to compare the replicas, and to repair what does not match; "volume show" has the result',
    )
    .argument('<volume>', 'id or name')
    .action(async (ref: string, _options: unknown, command: Command) => {
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      const scrubbed = await client.scrubVolume(id);
      writeAnswer(output, globalOptions(command).json, scrubbed, () => volumeText(scrubbed, []));
    });
}

function addPromote(volume: Command, { output }: Context): void {
  volume
    .command('promote')
    .description(
      'when every replica in sync is gone for good: let a stale one count, and give up what it lacks',
    )
    .argument('<volume>', 'id or name')
    .argument('<node>', 'the node with the stale replica')
    .option('--accept-loss', 'what was written since it went stale is lost', false)
    .action(async (ref: string, node: string, options: { acceptLoss: boolean }, command: Command) => {
      if (!options.acceptLoss) {
        throw usageError(
          'what was written since the replica went stale would be lost; say so with --accept-loss',
        );
      }
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      const promoted = await client.promoteReplica(id, node);
      writeAnswer(output, globalOptions(command).json, promoted, () => volumeText(promoted, []));
    });
}

function addDelete(volume: Command, { output }: Context): void {
  volume
    .command('delete')
    .description('delete a volume and its data')
    .argument('<volume>', 'id or name')
    .option('--snapshots', 'its snapshots too; by default a volume with snapshots stays', false)
    .action(async (ref: string, options: { snapshots: boolean }, command: Command) => {
      const client = restClient(command);
      const { id } = await client.findVolume(ref);
      await client.deleteVolume(id, options);
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
  readonly force?: boolean;
}

/** What was asked for; the rest is the agent's choice. */
function attachBody(options: AttachOptions): Omit<CreateAttachment, 'volume'> {
  const { agent, datapath, queues, queueDepth, blockSize, readOnly, ioTimeout, force } = options;
  return {
    datapath,
    ...(agent === undefined ? {} : { agent }),
    ...(queues === undefined ? {} : { queues: parseCount(queues, '--queues') }),
    ...(queueDepth === undefined ? {} : { queueDepth: parseCount(queueDepth, '--queue-depth') }),
    ...(blockSize === undefined ? {} : { blockSizeBytes: Number(blockSize) }),
    ...(readOnly === undefined ? {} : { readOnly }),
    ...(force === undefined ? {} : { force }),
    ...(ioTimeout === undefined ? {} : { ioTimeoutMs: parseMilliseconds(ioTimeout, '--io-timeout') }),
  };
}

function parseMilliseconds(text: string, option: string): number {
  if (!/^\d{1,8}$/.test(text)) throw usageError(`${option} takes milliseconds, not "${text}"`);
  return Number(text);
}
