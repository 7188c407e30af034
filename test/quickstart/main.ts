/**
 * `npm run quickstart`: a mirrored volume from nothing to a file system that survives the loss of a storage node, in a few
 * minutes. `--keep` leaves the cluster running. Exit code 0 only if everything was as it must be.
 */
import { constants } from 'node:os';
import { parseArgs } from 'node:util';
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { Console, megabytes } from './console.ts';
import { keepRunning } from './keep.ts';
import { abandon, describeReplicas, detach, type Outcome, play } from './play.ts';
import { Resources } from './resources.ts';
import { type Stage, setStage } from './stage.ts';

const USAGE = `usage: npm run quickstart [-- --keep]

  --keep   leave the cluster running, with the volume attached, until Ctrl-C
`;

type Signal = 'SIGINT' | 'SIGTERM' | 'SIGHUP';

async function main(argv: readonly string[]): Promise<number> {
  const keep = parseKeep(argv);
  if (keep === null) return 2;
  const console = new Console(process.stdout);
  const resources = new Resources();
  const asked = Promise.withResolvers<Signal>();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => asked.resolve(signal));
  }

  let exitCode = 1;
  let stage: Stage | null = null;
  let passed = false;
  const run = async (): Promise<number> => {
    stage = await setStage(console, resources);
    const outcome = await play(stage, console);
    if (!keep) await detach(stage, outcome);
    passed = true;
    summarize(console, stage, outcome);
    if (keep) await keepRunning(stage, console, { device: outcome.device, asked: asked.promise });
    return 0;
  };
  const interrupted = asked.promise.then((signal) => {
    console.step(`${signal}: cleaning up`);
    return passed ? 0 : 128 + constants.signals[signal];
  });
  try {
    exitCode = await Promise.race([run(), interrupted]);
  } catch (thrown) {
    const { code, message } = toBlockwireError(thrown);
    console.step(`FAILED: ${code}: ${message}`);
    if (stage !== null) console.text(logTails(stage));
  }
  try {
    // What the run is doing now fails when its machine goes; nobody waits for that.
    if (stage !== null && (keep || exitCode !== 0)) await abandon(stage);
    await resources.close();
  } catch (thrown) {
    console.step(`cleaning up failed: ${toBlockwireError(thrown).message}`);
    exitCode = exitCode === 0 ? 1 : exitCode;
  }
  return exitCode;
}

function parseKeep(argv: readonly string[]): boolean | null {
  try {
    return parseArgs({ args: [...argv], options: { keep: { type: 'boolean' } } }).values.keep ?? false;
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${USAGE}`);
    return null;
  }
}

function summarize(console: Console, { machine, tree }: Stage, outcome: Outcome): void {
  const where = machine.kind === 'vm' ? 'in the VM' : 'on this host';
  const { volume } = outcome;
  const lines: [string, string][] = [
    ['device', `${outcome.device} ${where}, Linux ${machine.kernelRelease}`],
    ['mode', outcome.mode],
    [
      'data',
      `${tree.sizeBytes} bytes in ${tree.fileCount} files, ${tree.folderCount} folders, ${tree.linkCount} links`,
    ],
    ['node lost', `SIGKILL after ${megabytes(outcome.killedAtBytes)} of ${megabytes(tree.archiveBytes)}`],
    [
      'degraded',
      `${String(volume.degraded)}: ${describeReplicas(volume)}; epoch ${outcome.epochBefore} → ${volume.epoch}`,
    ],
    ['verified', `${tree.fileCount} of ${tree.fileCount} checksums, file system clean`],
    ['time', `${console.seconds.toFixed(0)} s`],
    ['verdict', `PASSED: no byte was lost with the node; the mode was ${outcome.mode}`],
  ];
  console.text('');
  for (const [name, value] of lines) console.text(`${name.padEnd(10)} ${value}`);
}

function logTails({ cluster, agent }: Stage): string {
  return `${cluster.logTails()}\n--- agent\n${agent.logTail()}`;
}

process.exit(await main(process.argv.slice(2)));
