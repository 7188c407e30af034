/**
 * Our storage node against other NBD servers on this host: the same fio through its nbd engine, first on memory (what the
 * protocol costs), then on a preallocated file of a disk with O_DIRECT.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { processTreeUs } from './cpu.ts';
import { fioArguments, type Job, job, parseFio } from './fio.ts';
import { runToEnd, startDaemon } from './processes.ts';
import type { ReportLayout } from './report.ts';
import { type Competitor, competitorOrFailure, type Metrics, runRounds } from './rounds.ts';
import { SERVER_KINDS, type ServerKind, startServer } from './servers.ts';
import type { SuiteOptions, SuiteResult } from './suite.ts';
import { selectJobs } from './suite-first.ts';

const OURS: ServerKind = 'node';

interface Ground {
  readonly name: 'memory' | 'disk';
  readonly title: string;
  readonly directory: string;
  readonly direct: boolean;
  readonly sizeBytes: number;
  readonly kinds: readonly ServerKind[];
}

/**
 * The client has a CPU of its own, the servers have the others: a scheduler that packs what fits onto one CPU would otherwise
 * put the two together whenever the server needs little, and show it slower for that.
 */
const CPU_LAST = availableParallelism() - 1;
const CLIENT_CPUS = String(CPU_LAST);
const SERVER_CPUS = CPU_LAST === 0 ? '0' : `0-${CPU_LAST - 1}`;

/** Left out of the CPU window at either end of a run. */
const MARGIN_S = 0.5;
const CELL_SLACK_MS = 30_000;

function layout(): ReportLayout {
  return {
    baseline: OURS,
    ratios: [
      { metric: 'iops', title: 'IOPS ratio' },
      { metric: 'serverCpuUs', title: 'server CPU/IO ratio' },
    ],
    values: [
      { metric: 'iops', title: 'IOPS' },
      { metric: 'bytesPerSecond', title: 'MB/s', scale: 1e-6 },
      { metric: 'p50Us', title: 'p50 us' },
      { metric: 'p99Us', title: 'p99 us' },
      { metric: 'serverCpuUs', title: 'server us/IO' },
      { metric: 'fioCpuUs', title: 'fio us/IO' },
    ],
  };
}

const JOBS: readonly Job[] = [
  job('read', 4, 1),
  job('write', 4, 1),
  job('read', 4, 32),
  job('write', 4, 32),
  job('read', 4, 16, { jobs: 4 }),
  job('write', 4, 16, { jobs: 4 }),
  job('read', 64, 16),
  job('write', 64, 16),
  job('read', 512, 8, { order: 'sequential' }),
  job('write', 512, 8, { order: 'sequential' }),
];

const QUICK_JOBS: readonly Job[] = JOBS.filter(
  ({ depth, jobs, blockBytes }) => jobs === 1 && (depth === 32 || depth === 1 || blockBytes > 64 * 1024),
);

export async function suiteNode(options: SuiteOptions): Promise<SuiteResult> {
  const { quick, cleanup, onProgress } = options;
  const kinds = serverKinds(options.server);
  const memory = await mkdtemp('/dev/shm/blockwire-bench-');
  cleanup.add(() => rm(memory, { recursive: true, force: true }));
  const disk = await mkdtemp(join(tmpdir(), 'blockwire-bench-'));
  cleanup.add(() => rm(disk, { recursive: true, force: true }));
  const grounds: readonly Ground[] = [
    {
      name: 'memory',
      title: 'A file in memory (/dev/shm)',
      directory: memory,
      direct: false,
      sizeBytes: 512 * 2 ** 20,
      kinds: kinds.filter((kind) => kind !== 'nbdkit-memory'),
    },
    {
      name: 'disk',
      title: `A preallocated file on disk with O_DIRECT (${disk})`,
      directory: disk,
      direct: true,
      sizeBytes: (quick ? 1 : 4) * 2 ** 30,
      // The others have no O_DIRECT.
      kinds: kinds.filter((kind) => kind === OURS || kind.startsWith('qemu')),
    },
  ];
  for (const asked of options.sections ?? []) {
    if (!grounds.some(({ name }) => name === asked))
      throw new BlockwireError('BW_INVALID_ARGUMENT', `--section ${asked}: memory, disk`);
  }
  const timing = quick ? { rampS: 1, runtimeS: 3 } : { rampS: 2, runtimeS: 8 };
  const sections = [];
  for (const ground of grounds) {
    if (options.sections?.includes(ground.name) === false) continue;
    onProgress(`${ground.title}: starting ${ground.kinds.join(', ')}`);
    const competitors: Competitor[] = [];
    for (const kind of ground.kinds) {
      competitors.push(await competitorOrFailure(kind, () => serve(kind, ground, timing, options)));
    }
    const samples = await runRounds({
      ...options,
      jobs: selectJobs(quick ? QUICK_JOBS : JOBS, options.only),
      competitors,
      rounds: options.rounds ?? (quick ? 3 : 5),
    });
    sections.push({ title: ground.title, layout: layout(), samples });
  }
  return {
    sections,
    facts: [
      'client: fio, nbd engine, on the same host; each job has a connection of its own',
      `CPUs: client ${CLIENT_CPUS}, servers ${SERVER_CPUS}`,
    ],
  };
}

/** All servers, or ours and those asked for: names with commas between them. Throws BW_INVALID_ARGUMENT. */
function serverKinds(asked: string | null): readonly ServerKind[] {
  if (asked === null) return SERVER_KINDS;
  const wanted = new Set([OURS, ...asked.split(',')]);
  const known = SERVER_KINDS.filter((kind) => wanted.has(kind));
  if (known.length < wanted.size) {
    const names = SERVER_KINDS.join(', ');
    throw new BlockwireError('BW_INVALID_ARGUMENT', `--server ${asked}: one or more of ${names}`);
  }
  return known;
}

interface Timing {
  readonly rampS: number;
  readonly runtimeS: number;
}

async function serve(
  kind: ServerKind,
  ground: Ground,
  timing: Timing,
  { cleanup }: SuiteOptions,
): Promise<Competitor> {
  const server = await startServer({
    kind,
    host: '127.0.0.1',
    netns: null,
    sizeBytes: ground.sizeBytes,
    directory: join(ground.directory, kind),
    direct: ground.direct,
  });
  cleanup.add(() => server.stop());
  // Of all its threads; those to come inherit it.
  await runToEnd(['taskset', '--all-tasks', '--cpu-list', '--pid', SERVER_CPUS, String(server.pid)]);
  const outputPath = join(ground.directory, `${kind}.json`);
  return {
    name: kind,
    async measure(wanted): Promise<Metrics> {
      server.check();
      await rm(outputPath, { force: true });
      const { rampS, runtimeS } = timing;
      const target = { uri: server.uri };
      const fio = startDaemon(
        [
          ...['taskset', '--cpu-list', CLIENT_CPUS],
          ...['fio', ...fioArguments({ job: wanted, target, rampS, runtimeS, outputPath })],
        ],
        { netns: null },
      );
      try {
        await sleep((rampS + MARGIN_S) * 1000);
        const start = sample(server.pid, fio.pid);
        await sleep((runtimeS - 2 * MARGIN_S) * 1000);
        const end = sample(server.pid, fio.pid);
        const code = await fio.wait(CELL_SLACK_MS);
        if (code !== 0)
          throw new BlockwireError('BW_IO', `fio ended with exit code ${code}: ${fio.output()}`);
        const result = parseFio(await readFile(outputPath, 'utf8'), wanted.mode);
        const ios = (result.iops * (end.nowMs - start.nowMs)) / 1000;
        return {
          ...result,
          serverCpuUs: (end.serverUs - start.serverUs) / ios,
          fioCpuUs: (end.fioUs - start.fioUs) / ios,
        };
      } finally {
        await fio.kill();
      }
    },
  };
}

function sample(serverPid: number, fioPid: number) {
  return { nowMs: performance.now(), serverUs: processTreeUs(serverPid), fioUs: processTreeUs(fioPid) };
}
