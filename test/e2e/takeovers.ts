/**
 * Agents that are killed or replaced while fio writes and verifies: what recovery.vm.test.ts does a few times, as often
 * as is asked for.
 *
 *   node test/e2e/takeovers.ts [--kills 100] [--handovers 20] [--queues 1] [--datapath auto] [--seed N]
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { freshSeed, Random } from '../fault/random.ts';
import { Load } from './load.ts';
import type { AttachBody } from './rest.ts';
import { MIB, World } from './world.ts';

const SIZE_BYTES = 16 * MIB;
/** An agent is left to work so long at most before its end. */
const LIFE_MS_MAX = 2000;

export interface TakeoverPlan {
  readonly kills: number;
  readonly handovers: number;
  readonly seed: number;
  readonly device?: Omit<AttachBody, 'volume'>;
  readonly onProgress?: (message: string) => void;
}

export interface TakeoverReport {
  readonly fioRuns: number;
  readonly devicesBefore: number;
  readonly devicesAfter: number;
  /** From the kill to the next process serving the device, its start included. */
  readonly killGapsMs: readonly number[];
  /** As the agents measured them. */
  readonly handoverPausesMs: readonly number[];
  readonly digests: readonly string[];
  readonly agentErrors: number;
}

/** Throws BW_IO with fio's words when the application saw an error. */
export async function runTakeovers(world: World, plan: TakeoverPlan): Promise<TakeoverReport> {
  const devicesBefore = await countDevices(world);
  const random = new Random(plan.seed);
  const volume = await world.rest.createVolume({ name: 'takeovers', sizeBytes: SIZE_BYTES, replicas: 2 });
  const { id, device } = await world.rest.attach({ volume: volume.id, ...plan.device });
  const load = Load.fio(world, device, SIZE_BYTES);

  const killGapsMs: number[] = [];
  const handoverPausesMs: number[] = [];
  for (let done = 0; done < plan.kills + plan.handovers; done++) {
    const isKill = random.below(plan.kills + plan.handovers - done) < plan.kills - killGapsMs.length;
    await sleep(random.below(LIFE_MS_MAX));
    load.assertGoesOn();
    if (isKill) {
      const killedMs = performance.now();
      world.agent.process.kill('SIGKILL');
      await world.agent.process.done;
      // Now and then the next one is killed too, somewhere between its start and its taking over.
      if (random.oneIn(5)) await world.startAndKill(random.below(LIFE_MS_MAX));
      await world.restartAgent();
      killGapsMs.push(Math.round(performance.now() - killedMs));
    } else {
      const exitCode = await world.handOver();
      if (exitCode !== 0)
        throw new BlockwireError('BW_IO', `the old agent ended with ${exitCode}\n${world.describe()}`);
      handoverPausesMs.push(...world.agent.takenOver.map(({ pauseMs }) => pauseMs ?? Number.NaN));
    }
    const taken = world.agent.takenOver.map((takeover) => takeover.device);
    if (taken.join() !== device)
      throw new BlockwireError('BW_IO', `taken over: [${taken.join()}], not ${device}\n${world.describe()}`);
    plan.onProgress?.(
      `${done + 1}: ${isKill ? `killed, back after ${killGapsMs.at(-1)}` : `handed over in ${handoverPausesMs.at(-1)}`} ms`,
    );
  }

  const fioRuns = await load.stop();
  const agentErrors = await world.agentMetric('blockwire_agent_errors_total', { volume: volume.id });
  await world.rest.detach(id);
  const digests = await world.replicaDigests(volume);
  await world.rest.deleteVolume(volume.id);
  return {
    fioRuns,
    devicesBefore,
    devicesAfter: await countDevices(world),
    killGapsMs,
    handoverPausesMs,
    digests,
    agentErrors,
  };
}

async function countDevices(world: World): Promise<number> {
  return Number(await world.shell('ls /dev | grep -c "^ublk[bc]" || true'));
}

function spread(values: readonly number[]): string {
  if (values.length === 0) return 'none';
  const sorted = values.toSorted((a, b) => a - b);
  return `min ${sorted[0]}, median ${sorted[sorted.length >> 1]}, max ${sorted.at(-1)} ms`;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      kills: { type: 'string', default: '100' },
      handovers: { type: 'string', default: '20' },
      queues: { type: 'string', default: '1' },
      datapath: { type: 'string', default: 'auto' },
      seed: { type: 'string', default: String(freshSeed()) },
    },
  });
  const say = (message: string): void => void process.stdout.write(`${message}\n`);
  say(`seed ${values.seed}`);
  const world = await World.start({ cpus: Math.max(2, Number(values.queues)) });
  try {
    const report = await runTakeovers(world, {
      kills: Number(values.kills),
      handovers: Number(values.handovers),
      seed: Number(values.seed),
      device: { queues: Number(values.queues), datapath: values.datapath },
      onProgress: say,
    });
    say(
      `fio: ${report.fioRuns} runs without an error; requests answered with an error: ${report.agentErrors}`,
    );
    say(`replicas identical: ${new Set(report.digests).size === 1}`);
    say(`devices before ${report.devicesBefore}, after ${report.devicesAfter}`);
    say(`${report.killGapsMs.length} kills, back after: ${spread(report.killGapsMs)}`);
    say(`${report.handoverPausesMs.length} handovers, paused for: ${spread(report.handoverPausesMs)}`);
  } finally {
    await world.close();
  }
}

if (import.meta.main) await main();
