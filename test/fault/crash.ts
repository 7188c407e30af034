/**
 * Crash consistency of the storage node: verified writes on several connections, SIGKILL at a random point, start, and
 * everything is read back and held against the model.
 *
 *   node test/fault/crash.ts --rounds 2000 --seed 7 [--jobs 3] [--minutes 10] [--workers 2] [--dir /mnt/xfs]
 *
 * The seed decides the requests and the points of killing; the scheduler has its part too, so that a seed makes a failure
 * likely again, not certain.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { runToEnd } from '../bench/processes.ts';
import { BLOCK_BYTES } from './block-content.ts';
import { NbdSession, SessionEnded } from './nbd-session.ts';
import { freshSeed, Random } from './random.ts';
import { StorageNode } from './storage-node.ts';
import { VolumeModel } from './volume-model.ts';
import { runWorkload, type WorkloadCounts } from './workload.ts';

/** Two volumes, one of which ends in the middle of a block. */
const VOLUMES = [
  ['vol-a', 4 * 2 ** 20],
  ['vol-b', 2 ** 20 + 1536],
] as const;
const MODES = ['simple', 'structured', 'extended'] as const;
const ROUND_MS_MAX = 20_000;
const TELL_ROUNDS = 50;
const CHECK_PROGRAM = new URL('../../services/node/check.ts', import.meta.url).pathname;

export interface CrashOptions {
  readonly directory: string;
  readonly seed: number;
  readonly rounds: number;
  readonly workers?: number;
  /** No round is begun once it answers true. */
  readonly isOver?: () => boolean;
  readonly onRound?: (report: CrashReport) => void;
}

export interface CrashReport {
  rounds: number;
  kills: number;
  killsWhileStarting: number;
  cleanEnds: number;
  /** Open when the node was killed. */
  openAtKill: number;
  readonly counts: WorkloadCounts;
}

function emptyReport(): CrashReport {
  const counts = { sent: 0, answered: 0, flushed: 0 };
  return { rounds: 0, kills: 0, killsWhileStarting: 0, cleanEnds: 0, openAtKill: 0, counts };
}

/** What the model does not allow. */
export class CrashViolation extends Error {}

/** Runs the rounds. Throws CrashViolation with the round and the seed. */
export async function crashRounds(options: CrashOptions): Promise<CrashReport> {
  const { seed, rounds } = options;
  const volumes = VOLUMES.map(([name, sizeBytes]) => new VolumeModel(name, sizeBytes));
  const report = emptyReport();
  for (; report.rounds < rounds && options.isOver?.() !== true; report.rounds++) {
    const round = new Round(options, volumes, report);
    const violations = await round.run();
    if (violations.length > 0) {
      const first = violations.slice(0, 20).join('\n  ');
      const all = `${violations.length} violations in round ${report.rounds} of seed ${seed}`;
      throw new CrashViolation(`${all}:\n  ${first}\n${round.log()}`);
    }
    options.onRound?.(report);
  }
  return report;
}

class Round {
  readonly #options: CrashOptions;
  readonly #volumes: readonly VolumeModel[];
  readonly #report: CrashReport;
  readonly #random: Random;
  readonly #violations: string[] = [];
  #node: StorageNode | null = null;
  #stopping = false;

  constructor(options: CrashOptions, volumes: readonly VolumeModel[], report: CrashReport) {
    this.#options = options;
    this.#volumes = volumes;
    this.#report = report;
    // Every round has its own seed: a failing one needs none of those before it but for what they wrote.
    this.#random = new Random(Math.imul(options.seed, 0x9e3779b1) ^ report.rounds);
  }

  log(): string {
    return this.#node?.log ?? '';
  }

  /** One life of the node: start, check, load, kill. Returns what was wrong. */
  async run(): Promise<readonly string[]> {
    if (this.#report.rounds > 0 && this.#random.oneIn(10)) await this.#checkAtRest();
    if (this.#random.oneIn(6)) await this.#killWhileStarting();
    const node = await StorageNode.start(this.#nodeOptions());
    this.#node = node;
    try {
      for (const volume of this.#volumes) await this.#check(node, volume);
      if (this.#violations.length === 0) await this.#load(node);
    } catch (error) {
      // A long read that fails half way is told so to a client of simple replies.
      if (!(error instanceof SessionEnded)) throw error;
      this.#violations.push(`${error.message} (${node.ended ?? 'the node runs'})`);
    } finally {
      await node.end('SIGKILL');
    }
    return this.#violations;
  }

  #nodeOptions(): { dataDir: string; exports: string[]; extra: string[] } {
    return {
      dataDir: join(this.#options.directory, 'data'),
      exports: this.#volumes.map(({ name, sizeBytes }) => `${name}=${sizeBytes}`),
      extra: ['--workers', String(this.#options.workers ?? 1), '--buffer-mib', '16'],
    };
  }

  /** What was killed is in need of recovery, not damaged: the check command must not say otherwise. */
  async #checkAtRest(): Promise<void> {
    const command = [process.execPath, CHECK_PROGRAM, join(this.#options.directory, 'data')];
    await runToEnd(command).catch((error: unknown) => {
      this.#violations.push(`the check of the killed node's directory: ${String(error)}`);
    });
  }

  /** Recovery may be cut short like everything else. */
  async #killWhileStarting(): Promise<void> {
    const node = StorageNode.launch(this.#nodeOptions());
    this.#node = node;
    await Promise.race([node.ready, sleep(this.#random.below(1500))]);
    await node.end('SIGKILL');
    this.#report.killsWhileStarting++;
  }

  /** Reads a whole volume: from here on, what it holds is what it holds. */
  async #check(node: StorageNode, volume: VolumeModel): Promise<void> {
    const session = await NbdSession.open(node.nbd, {
      exportName: volume.name,
      mode: this.#random.pick(MODES),
    });
    const stepBytes = this.#random.pick([64 * 1024, 256 * 1024, 3 * 2 ** 20]);
    for (let offset = 0; offset < volume.sizeBytes; offset += stepBytes) {
      const lengthBytes = Math.min(stepBytes, volume.sizeBytes - offset);
      const { error, data } = await session.request(nbd.NBD_CMD_READ, offset, lengthBytes);
      if (error === nbd.NBD_OK) this.#violations.push(...volume.settled(offset, data));
      else await this.#checkBlocks(session, volume, offset, lengthBytes);
    }
    session.destroy();
  }

  /** Finds the blocks that cannot be read. */
  async #checkBlocks(
    session: NbdSession,
    volume: VolumeModel,
    offset: number,
    lengthBytes: number,
  ): Promise<void> {
    for (let at = offset; at < offset + lengthBytes; at += BLOCK_BYTES) {
      const length = Math.min(BLOCK_BYTES, volume.sizeBytes - at);
      const { error, data } = await session.request(nbd.NBD_CMD_READ, at, length);
      if (error === nbd.NBD_OK) this.#violations.push(...volume.settled(at, data));
      else
        this.#violations.push(
          `${volume.name} block ${at / BLOCK_BYTES}: read error ${error} after the restart`,
        );
    }
  }

  async #load(node: StorageNode): Promise<void> {
    const { counts } = this.#report;
    const killAt = counts.answered + this.#random.below(this.#random.oneIn(3) ? 40 : 1500);
    const reached = Promise.withResolvers<void>();
    const sessions = await Promise.all(
      Array.from({ length: 2 + this.#random.below(4) }, async (_, index) => {
        const volume = this.#volumes[index % this.#volumes.length]!;
        const session = await NbdSession.open(node.nbd, {
          exportName: volume.name,
          mode: this.#random.pick(MODES),
        });
        return { session, volume };
      }),
    );
    const loads = sessions.map(({ session, volume }, connection) =>
      runWorkload({
        session,
        volume,
        connection,
        random: new Random(this.#random.bits()),
        depth: 1 + this.#random.below(24),
        counts,
        onAnswer: () => {
          if (counts.answered >= killAt) reached.resolve();
        },
        onViolation: (what) => {
          this.#violations.push(what);
          reached.resolve();
        },
        isStopping: () => this.#stopping,
      }),
    );
    const late = sleep(ROUND_MS_MAX, 'late', { ref: false });
    const lost = Promise.race(sessions.map(({ session }) => session.closed));
    const outcome = await Promise.race([reached.promise, lost, late]);
    if (outcome !== undefined)
      this.#violations.push(`under load: ${outcome} (${node.ended ?? 'the node runs'})`);
    // Somewhere between two answers.
    if (this.#random.oneIn(2)) await sleep(this.#random.below(4));
    this.#report.openAtKill += sessions.reduce((sum, { session }) => sum + session.inFlight, 0);
    this.#stopping = this.#random.oneIn(12);
    if (this.#stopping) {
      const ended = await node.end('SIGTERM');
      if (ended !== 'exit code 0') this.#violations.push(`SIGTERM under load ended with ${ended}`);
      this.#report.cleanEnds++;
    } else {
      await node.end('SIGKILL');
      this.#report.kills++;
    }
    for (const { session } of sessions) await session.closed;
    await Promise.all(loads);
  }
}

/** Reports of harnesses that run side by side, as one. */
export function sumReports(reports: readonly CrashReport[]): CrashReport {
  const sum = emptyReport();
  for (const { counts, ...numbers } of reports) {
    sum.rounds += numbers.rounds;
    sum.kills += numbers.kills;
    sum.killsWhileStarting += numbers.killsWhileStarting;
    sum.cleanEnds += numbers.cleanEnds;
    sum.openAtKill += numbers.openAtKill;
    sum.counts.sent += counts.sent;
    sum.counts.answered += counts.answered;
    sum.counts.flushed += counts.flushed;
  }
  return sum;
}

function describe({ rounds, kills, killsWhileStarting, cleanEnds, openAtKill, counts }: CrashReport): string {
  const ends = `${kills} kills, ${killsWhileStarting} more while starting, ${cleanEnds} clean ends`;
  return `${rounds} rounds: ${ends}; ${counts.answered} answers, ${openAtKill} requests open at a kill`;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '100' },
      minutes: { type: 'string', default: 'Infinity' },
      jobs: { type: 'string', default: '1' },
      seed: { type: 'string' },
      workers: { type: 'string', default: '1' },
      dir: { type: 'string', default: tmpdir() },
    },
  });
  const seed = values.seed === undefined ? freshSeed() : Number(values.seed);
  const jobs = Number(values.jobs);
  const rounds = Math.ceil(Number(values.rounds) / jobs);
  const endMs = performance.now() + Number(values.minutes) * 60_000;
  const say = (text: string): void => void process.stdout.write(`${text}\n`);
  const reports: CrashReport[] = [];
  let violated = false;
  let told = 0;
  const runJob = async (job: number): Promise<void> => {
    const directory = mkdtempSync(join(values.dir, 'blockwire-crash-'));
    say(`seed ${seed + job}, ${rounds} rounds in ${directory}`);
    const onRound = (report: CrashReport): void => {
      reports[job] = structuredClone(report);
      const sum = sumReports(reports.filter((each) => each !== undefined));
      if (sum.rounds < told + TELL_ROUNDS) return;
      told = sum.rounds;
      say(describe(sum));
    };
    const isOver = (): boolean => violated || performance.now() > endMs;
    try {
      const workers = Number(values.workers);
      reports[job] = await crashRounds({ directory, seed: seed + job, rounds, workers, onRound, isOver });
      rmSync(directory, { recursive: true, force: true });
    } catch (error) {
      if (!(error instanceof CrashViolation)) throw error;
      violated = true;
      process.exitCode = 1;
      say(`${error.message}\nthe data directory is kept: ${directory}`);
    }
  };
  await Promise.all(Array.from({ length: jobs }, (_, job) => runJob(job)));
  say(describe(sumReports(reports.filter((each) => each !== undefined))));
}

if (import.meta.main) await main();
