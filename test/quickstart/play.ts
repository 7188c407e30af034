/**
 * What the quickstart does on its stage: a mirrored volume, a file system with real data, a storage node killed half way,
 * everything read back from the survivor.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Value } from 'typebox/value';
import { metric } from '../e2e/cluster.ts';
import { Attachment, Volume } from '../e2e/rest.ts';
import { type Console, megabytes } from './console.ts';
import type { Stage } from './stage.ts';
import { archiveParameters } from './tree.ts';

const VOLUME_NAME = 'quickstart';
const VICTIM = 'node-2';
const MOUNT = '/run/blockwire-quickstart';
const COPY_MS_MAX = 15 * 60_000;
const COMMAND_MS_MAX = 5 * 60_000;
const STALE_MS_MAX = 60_000;
/** See copy.sh. */
const ARCHIVE_RECORD_BYTES = 256 * 1024;

export interface Outcome {
  readonly device: string;
  /** As the control plane and the agent tell it of the device. */
  readonly mode: string;
  /** The volume after the loss. */
  readonly volume: Volume;
  readonly epochBefore: number;
  readonly killedAtBytes: number;
  readonly attachment: Attachment;
}

/** Throws BW_… at the first thing that is not as it must be. */
export async function play(stage: Stage, console: Console): Promise<Outcome> {
  const { machine, cluster, tree } = stage;
  const inside = (command: string): Promise<string> => machine.check(command, { timeoutMs: COMMAND_MS_MAX });

  console.step('$ blockwire volume create quickstart --size 1GiB --replicas 2');
  const created = parse(
    Volume,
    await stage.blockwire('volume', 'create', VOLUME_NAME, '--size', '1GiB', '--replicas', '2'),
  );
  console.step(`$ blockwire volume attach quickstart   (${created.id})`);
  const first = await attach(stage);
  const { device } = first.attachment;
  console.step(`${device} is there, mode ${first.mode}; making ext4`);
  // Inode tables and journal are zero already on a new volume.
  await inside(`mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 ${device}`);
  await inside(`mkdir -p ${MOUNT} && mount ${device} ${MOUNT}`);
  if (machine.kind === 'vm') {
    // Little is left in the page cache, so that half way of the copy is about half way on the device.
    await inside('sysctl -q vm.dirty_background_bytes=8388608 vm.dirty_bytes=33554432');
  }

  console.step(`copying ${tree.fileCount} files, ${megabytes(tree.sizeBytes)}`);
  const killedAtBytes = await copyAndKill(stage, console);
  console.step('the copy is complete; waiting for the control plane’s view of the loss');
  const degraded = await waitStale(stage, created.id);
  console.step(`${describeReplicas(degraded)}, epoch ${created.epoch} → ${degraded.epoch}`);
  await inside(`sync && umount ${MOUNT}`);
  console.step('unmounted; $ blockwire volume detach quickstart');
  await stage.blockwire('volume', 'detach', VOLUME_NAME);
  await inside(`test ! -e ${device}`);

  console.step('$ blockwire volume attach quickstart   (from the survivor)');
  const second = await attach(stage);
  await inside(`mount -o ro ${second.attachment.device} ${MOUNT}`);
  console.step('mounted again, read-only; verifying every file');
  const verified = await inside(
    `bash test/quickstart/verify.sh ${MOUNT}/tree ${stage.listingPath} ${stage.checksumsPath}`,
  );
  if (!verified.includes(`checksums verified: ${tree.fileCount}\n`)) {
    throw new BlockwireError('BW_IO', `not all files were verified: ${verified}`);
  }
  console.step(`all ${tree.fileCount} checksums are right; checking the file system`);
  await inside(`umount ${MOUNT} && rmdir ${MOUNT} && fsck.ext4 -fn ${second.attachment.device}`);
  console.step('fsck finds nothing');

  const volume = await cluster.rest.volume(created.id);
  assertDegraded(volume);
  if (second.mode !== first.mode) {
    throw new BlockwireError('BW_INTERNAL', `the mode was ${first.mode}, then ${second.mode}`);
  }
  return {
    device: second.attachment.device,
    mode: second.mode,
    volume,
    epochBefore: created.epoch,
    killedAtBytes,
    attachment: second.attachment,
  };
}

export async function detach(stage: Stage, { device }: Outcome): Promise<void> {
  await stage.blockwire('volume', 'detach', VOLUME_NAME);
  await stage.machine.check(`test ! -e ${device}`);
}

/** On a host nothing may be left behind a failed run; a VM simply goes. */
export async function abandon({ machine, cluster }: Pick<Stage, 'machine' | 'cluster'>): Promise<void> {
  if (machine.kind !== 'host') return;
  await machine.run(`umount --lazy ${MOUNT}; rmdir ${MOUNT}`);
  const { body } = await cluster.rest.call('GET', '/v1/attachments');
  for (const attachment of Array.isArray(body) ? body : []) {
    if (Value.Check(Attachment, attachment)) await cluster.rest.detach(attachment.id, { force: true });
  }
}

export function describeReplicas({ replicas }: Volume): string {
  return replicas.map(({ node, state }) => `${node} ${state}`).join(', ');
}

async function attach(stage: Stage): Promise<{ attachment: Attachment; mode: string }> {
  const answer = parse(Attachment, await stage.blockwire('volume', 'attach', VOLUME_NAME));
  const attachment = await stage.cluster.rest.attachment(answer.id);
  const mode = attachment.datapath;
  const metrics = await stage.agent.get('/metrics');
  const labels = { device: attachment.device, datapath: mode };
  if (attachment.state !== 'attached' || metric(metrics, 'blockwire_agent_device_info', labels) !== 1) {
    throw new BlockwireError('BW_INTERNAL', `the agent does not confirm ${JSON.stringify(attachment)}`);
  }
  return { attachment, mode };
}

/** Copies the tree; the storage node is killed in the moment when half of it is through. Returns how far that was. */
async function copyAndKill(stage: Stage, console: Console): Promise<number> {
  const { machine, cluster, tree } = stage;
  let killedAtBytes = 0;
  let pending = '';
  const copy = machine.start(`exec bash test/quickstart/copy.sh ${MOUNT}/tree ${archiveParameters(tree)}`, {
    timeoutMs: COPY_MS_MAX,
    onOutput: (chunk) => {
      pending += chunk.toString();
      const lines = pending.split('\n');
      pending = lines.pop() ?? '';
      for (const line of lines) {
        const records = /^tar: copied (\d+)$/.exec(line)?.[1];
        if (records === undefined) continue;
        const doneBytes = Number(records) * ARCHIVE_RECORD_BYTES;
        console.progress('copied', doneBytes, tree.archiveBytes);
        if (killedAtBytes > 0 || doneBytes < tree.archiveBytes / 2) continue;
        killedAtBytes = doneBytes;
        cluster.signalNode(VICTIM, 'SIGKILL');
        const share = ((100 * doneBytes) / tree.archiveBytes).toFixed(0);
        console.step(`killed ${VICTIM} (SIGKILL) at ${megabytes(doneBytes)}, ${share} % of the copy`);
      }
    },
  });
  copy.end();
  const { exitCode, output, timedOut } = await copy.done;
  if (exitCode !== 0 || timedOut) {
    throw new BlockwireError('BW_IO', `the copy failed (exit code ${exitCode}): ${output.slice(-2000)}`);
  }
  if (killedAtBytes === 0) throw new BlockwireError('BW_INTERNAL', 'the copy ended before its half');
  return killedAtBytes;
}

async function waitStale({ cluster }: Stage, volumeId: string): Promise<Volume> {
  const deadlineMs = performance.now() + STALE_MS_MAX;
  for (;;) {
    const volume = await cluster.rest.volume(volumeId);
    if (volume.degraded || performance.now() > deadlineMs) {
      assertDegraded(volume);
      return volume;
    }
    await sleep(100);
  }
}

function assertDegraded(volume: Volume): void {
  const asExpected =
    volume.degraded &&
    volume.replicas.every(({ node, state }) => state === (node === VICTIM ? 'stale' : 'inSync'));
  if (!asExpected) {
    throw new BlockwireError('BW_INTERNAL', `${VICTIM} is dead, but the volume is ${JSON.stringify(volume)}`);
  }
}

function parse<Schema extends typeof Volume | typeof Attachment>(schema: Schema, value: unknown) {
  return Value.Parse(schema, value);
}
