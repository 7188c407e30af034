/**
 * Storage nodes that are killed in turn, each rebuilt before the next goes, while fio writes and verifies on one volume
 * and files are copied and compared on another: what rebuild.vm.test.ts does a few times, for as long as is asked for.
 *
 *   node test/e2e/storm.ts [--minutes 5] [--seed N] [--only kill,again,...] [--logs DIR]
 */
import { cpSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { freshSeed, Random } from '../fault/random.ts';
import { Load } from './load.ts';
import type { Volume } from './rest.ts';
import { eventually, type LabWorld, MIB, World } from './world.ts';

const FIO_BYTES = 16 * MIB;
const VOLUME_BYTES = 64 * MIB;
const AWAY_MS_MAX = 3000;
const PAUSE_MS_MAX = 2000;
const REPLICA_TIMEOUT_MS = 2000;
const MOUNT = '/run/storm';

export const HAPPENINGS = ['kill', 'again', 'source', 'silence', 'agent', 'control', 'everything'] as const;
export type Happening = (typeof HAPPENINGS)[number];

export interface StormPlan {
  readonly seed: number;
  /** What happens, one after the other, each to the next node in turn; null: that is all. */
  readonly next: (random: Random) => Happening | null;
  readonly onProgress?: (message: string) => void;
}

export interface StormReport {
  /** From the return of a node until every replica was in sync. */
  readonly rebuiltMs: readonly number[];
  readonly fioRuns: number;
  readonly copies: number;
  /** Requests that the agent answered with an error. */
  readonly agentErrors: number;
  /** By volume: the digests of its replicas. */
  readonly digests: readonly (readonly string[])[];
}

export function startStormWorld(): Promise<LabWorld> {
  return World.startLab({ lab: { nodes: 3 }, agent: { replicaTimeoutMs: REPLICA_TIMEOUT_MS } });
}

/** Throws BW_IO when an application saw an error or the file system is not clean, BW_TIMEOUT when a rebuild does not end. */
export async function runStorm(world: LabWorld, plan: StormPlan): Promise<StormReport> {
  const { rest, cluster } = world;
  const random = new Random(plan.seed);
  const fioVolume = await rest.createVolume({ name: 'storm-fio', sizeBytes: VOLUME_BYTES, replicas: 2 });
  const fileVolume = await rest.createVolume({ name: 'storm-files', sizeBytes: VOLUME_BYTES, replicas: 3 });
  const volumes = [fioVolume, fileVolume];
  const forFio = await rest.attach({ volume: fioVolume.id });
  const forFiles = await rest.attach({ volume: fileVolume.id });
  await world.shell(
    `mkfs.ext4 -q ${forFiles.device} && mkdir -p ${MOUNT} && mount -o errors=remount-ro ${forFiles.device} ${MOUNT}`,
  );
  const loads = [Load.fio(world, forFio.device, FIO_BYTES), Load.files(world, MOUNT)] as const;

  const rebuilt = (): Promise<void> =>
    world.inSync(volumes, () => {
      for (const load of loads) load.assertGoesOn();
    });
  /** Or it is over already. */
  const rebuilding = (node: string): Promise<unknown> =>
    eventually(
      () => Promise.all(volumes.map(({ id }) => rest.volume(id))),
      (now) => now.every((volume) => stateAt(volume, node) !== 'stale'),
    );
  const away = (): Promise<void> => sleep(random.below(AWAY_MS_MAX));

  const happen: Record<Happening, (node: string) => Promise<void>> = {
    kill: async (node) => {
      await cluster.kill(node);
      await away();
      await cluster.restart(node);
    },
    again: async (node) => {
      await happen.kill(node);
      await rebuilding(node);
      await happen.kill(node);
    },
    source: async (node) => {
      const other = cluster.nodes.find(({ id }) => id !== node)!.id;
      await happen.kill(node);
      await rebuilding(node);
      await happen.kill(other);
    },
    silence: async (node) => {
      await cluster.setLink(node, 'down');
      await sleep(REPLICA_TIMEOUT_MS + random.below(2 * REPLICA_TIMEOUT_MS));
      await cluster.setLink(node, 'up');
    },
    agent: async (node) => {
      world.agent.process.kill('SIGKILL');
      await cluster.kill(node);
      await world.agent.process.done;
      await Promise.all([world.restartAgent(), away().then(() => cluster.restart(node))]);
    },
    control: async (node) => {
      await cluster.kill('control', node);
      await away();
      await cluster.restart('control');
      await away();
      await cluster.restart(node);
    },
    everything: async () => {
      world.agent.process.kill('SIGKILL');
      await cluster.kill('control', ...cluster.nodes.map(({ id }) => id));
      await world.agent.process.done;
      await Promise.all([cluster.startEverything(), away().then(() => world.restartAgent())]);
    },
  };

  const rebuiltMs: number[] = [];
  for (let turn = 0; ; turn++) {
    const happening = plan.next(random);
    if (happening === null) break;
    const node = cluster.nodes[turn % cluster.nodes.length]!.id;
    await sleep(random.below(PAUSE_MS_MAX));
    await happen[happening](node);
    const backMs = performance.now();
    await rebuilt();
    rebuiltMs.push(Math.round(performance.now() - backMs));
    plan.onProgress?.(`${turn + 1}: ${happening} ${node}, rebuilt after ${rebuiltMs.at(-1)} ms`);
  }

  const [fioRuns, copies] = [await loads[0].stop(), await loads[1].stop()];
  await world.shell(`umount ${MOUNT} && fsck.ext4 -fn ${forFiles.device}`);
  const kernelErrors = await world.shell('dmesg | grep -E "I/O error|EXT4-fs.*error" || true');
  if (kernelErrors !== '') throw new BlockwireError('BW_IO', `the kernel saw errors: ${kernelErrors}`);
  const agentErrors = await world.agentMetric('blockwire_agent_errors_total');
  for (const { id } of [forFio, forFiles]) await rest.detach(id);
  const digests = await Promise.all(volumes.map((volume) => world.replicaDigests(volume)));
  for (const { id } of volumes) await rest.deleteVolume(id);
  return { rebuiltMs, fioRuns, copies, agentErrors, digests };
}

function stateAt(volume: Volume, nodeId: string): string {
  return volume.replicas.find(({ node }) => node === nodeId)?.state ?? 'none';
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      minutes: { type: 'string', default: '5' },
      seed: { type: 'string', default: String(freshSeed()) },
      only: { type: 'string', default: HAPPENINGS.join() },
      logs: { type: 'string' },
    },
  });
  const chosen = HAPPENINGS.filter((happening) => values.only.split(',').includes(happening));
  const say = (message: string): void => void process.stdout.write(`${message}\n`);
  say(`seed ${values.seed}: ${chosen.join()}`);
  const world = await startStormWorld();
  const endMs = performance.now() + Number(values.minutes) * 60_000;
  try {
    const report = await runStorm(world, {
      seed: Number(values.seed),
      next: (random) => (performance.now() > endMs ? null : random.pick(chosen)),
      onProgress: say,
    });
    const sorted = report.rebuiltMs.toSorted((a, b) => a - b);
    say(
      `${sorted.length} times, rebuilt after: median ${sorted[sorted.length >> 1]}, max ${sorted.at(-1)} ms`,
    );
    say(`fio: ${report.fioRuns} runs, files: ${report.copies} copies, without an error; file system clean`);
    say(`requests answered with an error: ${report.agentErrors}`);
    say(`replicas identical: ${report.digests.every((digests) => new Set(digests).size === 1)}`);
  } finally {
    if (values.logs !== undefined) cpSync(`${world.cluster.dir}/log`, values.logs, { recursive: true });
    await world.close();
  }
}

if (import.meta.main) await main();
