/**
 * Our device in fused and in copy mode against the kernel's own nbd client, all three on the same export of the same
 * server outside the guest, over a network with offloads.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { parseDevice } from './devices.ts';
import { type Job, job } from './fio.ts';
import { Guest } from './guest.ts';
import type { Cleanup } from './processes.ts';
import type { ReportLayout } from './report.ts';
import { competitorOrFailure, runRounds } from './rounds.ts';
import { type ServerKind, startServer } from './servers.ts';
import type { SuiteOptions, SuiteResult } from './suite.ts';
import { hostTarget, type Target } from './targets.ts';

export const EXPORT_BYTES = 512 * 2 ** 20;
export const BASELINE = 'nbd-client';

export const GUEST_LAYOUT: ReportLayout = {
  baseline: BASELINE,
  ratios: [
    { metric: 'iops', title: 'IOPS ratio' },
    { metric: 'virtualCpuUs', title: 'vCPU/IO ratio' },
    { metric: 'guestCpuUs', title: 'guest CPU/IO ratio' },
  ],
  values: [
    { metric: 'iops', title: 'IOPS' },
    { metric: 'bytesPerSecond', title: 'MB/s', scale: 1e-6 },
    { metric: 'p50Us', title: 'p50 us' },
    { metric: 'p99Us', title: 'p99 us' },
    { metric: 'guestBusyShare', title: 'guest busy %', scale: 100 },
    { metric: 'virtualCpuUs', title: 'vCPU us/IO' },
    { metric: 'guestCpuUs', title: 'guest us/IO' },
    { metric: 'guestCpuNsPerByte', title: 'ns/byte' },
    { metric: 'fioCpuUs', title: 'of it fio' },
    { metric: 'agentCpuUs', title: 'of it agent' },
    { metric: 'serverCpuUs', title: 'server us/IO' },
    { metric: 'entersPerIo', title: 'enters/IO' },
    { metric: 'sqesPerIo', title: 'SQEs/IO' },
    { metric: 'copiedShare', title: 'zc copied %', scale: 100 },
    { metric: 'othersShare', title: 'others %', scale: 100 },
  ],
};

export const QUICK_JOBS: readonly Job[] = [
  job('read', 4, 32),
  job('write', 4, 32),
  job('read', 512, 8),
  job('write', 512, 8),
];

export const GUEST_JOBS: readonly Job[] = [
  job('read', 4, 1),
  job('write', 4, 1),
  job('read', 4, 32),
  job('write', 4, 32),
  job('read', 64, 16),
  job('write', 64, 16),
  job('read', 512, 8),
  job('write', 512, 8),
];

export async function suiteFirst(options: SuiteOptions): Promise<SuiteResult> {
  const { quick, cleanup, onProgress } = options;
  const timing = quick ? { rampS: 1, runtimeS: 5 } : { rampS: 2, runtimeS: 8 };
  const guest = await Guest.boot({ network: 'tap', timing, cleanup, onProgress });
  const kind = guestServerKind(options.server);
  onProgress(`Starting the server (${kind})`);
  const nbd = await startGuestServers({ guest, kind, count: 1, cleanup });
  onProgress('Attaching the devices');
  const competitors = [];
  for (const name of ['fused', 'copy', BASELINE]) {
    const attach = () => guest.attach(parseDevice(name), { sizeBytes: EXPORT_BYTES, nbd, nvme: [] });
    competitors.push(await competitorOrFailure(name, attach));
  }
  const samples = await runRounds({
    ...options,
    jobs: selectJobs(quick && options.only === null ? QUICK_JOBS : GUEST_JOBS, options.only),
    competitors,
    rounds: options.rounds ?? (quick ? 3 : 5),
  });
  return {
    sections: [{ title: `One replica, server ${kind}, TAP`, layout: GUEST_LAYOUT, samples }],
    facts: [
      ...guestFacts(guest),
      `server: ${kind}, outside the guest, ${EXPORT_BYTES / 2 ** 20} MiB in memory, filled`,
    ],
  };
}

/** `node` or `nbdkit`. Throws BW_INVALID_ARGUMENT. */
export function guestServerKind(asked: string | null): ServerKind {
  if (asked === null || asked === 'node') return 'node';
  if (asked === 'nbdkit') return 'nbdkit-memory';
  throw new BlockwireError('BW_INVALID_ARGUMENT', `--server ${asked}: node or nbdkit`);
}

/** Throws BW_INVALID_ARGUMENT when no job is left. */
export function selectJobs(jobs: readonly Job[], only: string | null): readonly Job[] {
  const wanted = only?.split(',') ?? [''];
  const selected = jobs.filter(({ name }) => wanted.some((text) => name.includes(text)));
  if (selected.length > 0) return selected;
  const names = jobs.map(({ name }) => name).join(', ');
  throw new BlockwireError('BW_INVALID_ARGUMENT', `--only '${only}' names none of: ${names}`);
}

/** Servers in memory, outside the guest, each with a filled export of EXPORT_BYTES. */
export async function startGuestServers(options: {
  guest: Guest;
  kind: ServerKind;
  count: number;
  cleanup: Cleanup;
}): Promise<Target[]> {
  const { guest, kind, count, cleanup } = options;
  const { hostAddress, hostNetns } = guest.machine;
  const directory = await mkdtemp('/dev/shm/blockwire-bench-');
  cleanup.add(() => rm(directory, { recursive: true, force: true }));
  const targets: Target[] = [];
  for (let index = 0; index < count; index++) {
    const server = await startServer({
      kind,
      host: hostNetns === null ? '127.0.0.1' : hostAddress,
      netns: hostNetns,
      sizeBytes: EXPORT_BYTES,
      directory: join(directory, String(index)),
      direct: true,
    });
    cleanup.add(() => server.stop());
    targets.push(hostTarget(server, guest.hostAddress(server)));
  }
  return targets;
}

export function guestFacts({ machine }: Guest): string[] {
  const accelerator = 'accelerator' in machine ? `, accelerator ${String(machine.accelerator)}` : '';
  return [`guest: Linux ${machine.kernelRelease}, 2 CPUs${accelerator}; scheduler none on every device`];
}
