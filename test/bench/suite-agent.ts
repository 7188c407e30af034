/**
 * Every datapath of ours, with one and with two mirrors, against the kernel's nbd client and its NVMe/TCP. One boot a section,
 * all devices of a section interleaved:
 *
 *   tap        servers on the host, over a network with offloads: what a real host looks like
 *   loopback   servers inside the guest, on its own CPUs
 *   peer       servers inside a second guest, emulated like the first: the only place for the kernel's NVMe target outside
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Vm } from '../vm/vm.ts';
import { virtualCpuUs } from './cpu.ts';
import { type DeviceKind, type DeviceSpec, parseDevice } from './devices.ts';
import { Guest, type Timing } from './guest.ts';
import type { ReportLayout } from './report.ts';
import { type Competitor, competitorOrFailure, runRounds, type Sample } from './rounds.ts';
import type { ServerKind } from './servers.ts';
import type { SuiteOptions, SuiteResult } from './suite.ts';
import {
  BASELINE,
  EXPORT_BYTES,
  GUEST_JOBS,
  GUEST_LAYOUT,
  guestFacts,
  guestServerKind,
  QUICK_JOBS,
  selectJobs,
  startGuestServers,
} from './suite-first.ts';
import { startInside, startNvmeInside, type Target } from './targets.ts';

/** Servers inside a guest take its memory. */
const INSIDE_BYTES = 96 * 2 ** 20;

const ONE_MIRROR = [
  ...[BASELINE, 'nbd-client-c2', 'nbd-client-c4', 'nvme-tcp'],
  ...['copy', 'splice', 'fused-send', 'fused-zc'],
];
const TWO_MIRRORS = ['nbd-client-x2', 'nvme-tcp-x2', 'copy-x2', 'splice-x2', 'fused-send-x2', 'fused-zc-x2'];
const QUICK = [BASELINE, 'nvme-tcp', 'fused-send', 'fused-zc', 'nbd-client-x2', 'fused-zc-x2'];

/** Of the second guest, see peerNetwork. */
const PEER_ADDRESS = '10.77.1.2';

interface Ground {
  readonly title: (kind: ServerKind) => string;
  /** Devices that cannot be had there: they are left out, and the table says why. */
  readonly lacks?: { readonly kind: DeviceKind; readonly reason: string };
  /** Starts what the devices are attached to. */
  readonly serve: (
    guest: Guest,
    options: SuiteOptions,
    wanted: { kind: ServerKind; count: number; nvmeCount: number },
  ) => Promise<Servers>;
}

interface Servers {
  readonly sizeBytes: number;
  readonly nbd: readonly Target[];
  readonly nvme: readonly Target[];
}

const GROUNDS: Readonly<Record<string, Ground>> = {
  tap: {
    title: (kind) => `TAP: ${kind} on the host, ${EXPORT_BYTES / 2 ** 20} MiB in memory, filled`,
    lacks: {
      kind: 'nvme-tcp',
      reason: 'its target would be the host’s kernel, and hosts mostly lack nvmet_tcp: see loopback and peer',
    },
    async serve(guest, { cleanup }, { kind, count }) {
      const nbd = await startGuestServers({ guest, kind, count, cleanup });
      return { sizeBytes: EXPORT_BYTES, nbd, nvme: [] };
    },
  },
  loopback: {
    title: (kind) => `Loopback: ${kind} and nvmet inside the guest, ${INSIDE_BYTES / 2 ** 20} MiB in memory`,
    async serve({ machine }, _options, { kind, count, nvmeCount }) {
      const common = { host: '127.0.0.1', sizeBytes: INSIDE_BYTES };
      return {
        sizeBytes: INSIDE_BYTES,
        nbd: await startInside(machine, { ...common, kind, count, own: true }),
        nvme: nvmeCount === 0 ? [] : await startNvmeInside(machine, { ...common, count: nvmeCount }),
      };
    },
  },
  peer: {
    title: (kind) =>
      `Peer: ${kind} and nvmet inside a second guest, ${INSIDE_BYTES / 2 ** 20} MiB in memory. The server is as slow as ` +
      'the device: compare the CPU, not the IOPS',
    async serve({ machine }, { cleanup, onProgress }, { kind, count, nvmeCount }) {
      const { hostNetns } = machine;
      if (hostNetns === null)
        throw new BlockwireError('BW_UNSUPPORTED_HOST', 'peer needs a guest, on a tap network');
      const peer = await Vm.bootGuest({ peerOf: hostNetns, onProgress });
      cleanup.add(() => peer.close());
      const qemuPid = peer.pids.at(-1) ?? 0;
      const common = { host: PEER_ADDRESS, sizeBytes: INSIDE_BYTES };
      const elsewhere = (target: Target, index: number): Target =>
        // One guest serves all: its CPU time is counted once.
        index > 0 ? target : { ...target, cpuUs: () => virtualCpuUs(qemuPid) };
      const nbd = await startInside(peer, { ...common, kind, count, own: false });
      const nvme = nvmeCount === 0 ? [] : await startNvmeInside(peer, { ...common, count: nvmeCount });
      return { sizeBytes: INSIDE_BYTES, nbd: nbd.map(elsewhere), nvme: nvme.map(elsewhere) };
    },
  },
};
const DEFAULT_GROUNDS = ['tap', 'loopback'];

export async function suiteAgent(options: SuiteOptions): Promise<SuiteResult> {
  const { quick } = options;
  const timing = quick ? { rampS: 1, runtimeS: 4 } : { rampS: 2, runtimeS: 8 };
  const kind = guestServerKind(options.server ?? 'nbdkit');
  const names = options.devices ?? (quick ? QUICK : [...ONE_MIRROR, ...TWO_MIRRORS]);
  // The baseline is always there.
  const specs = [...new Set([BASELINE, ...names])].map(parseDevice);
  const facts: string[] = [];
  const sections = [];
  for (const name of options.sections ?? DEFAULT_GROUNDS) {
    const ground = GROUNDS[name];
    if (ground === undefined) {
      const known = Object.keys(GROUNDS).join(', ');
      throw new BlockwireError('BW_INVALID_ARGUMENT', `--section ${name}: ${known}`);
    }
    if (options.signal.aborted) break;
    const present = specs.filter((spec) => spec.kind !== ground.lacks?.kind);
    const { samples, guest } = await measureOn(ground, { options, kind, specs: present, timing });
    if (facts.length === 0) facts.push(...guestFacts(guest));
    if (present.length < specs.length)
      facts.push(`${name}: no ${ground.lacks!.kind}: ${ground.lacks!.reason}`);
    sections.push({ title: ground.title(kind), layout: GUEST_LAYOUT, samples });
    const second = secondMirrors(present, samples);
    if (second !== null) sections.push({ title: `${name}: what a second mirror costs`, ...second });
    await guest.machine.close();
  }
  return { sections, facts };
}

async function measureOn(
  ground: Ground,
  {
    options,
    kind,
    specs,
    timing,
  }: { options: SuiteOptions; kind: ServerKind; specs: readonly DeviceSpec[]; timing: Timing },
): Promise<{ samples: Sample[]; guest: Guest }> {
  const { quick, cleanup, onProgress } = options;
  const guest = await Guest.boot({ network: 'tap', timing, cleanup, onProgress });
  onProgress('Starting the servers');
  const { sizeBytes, nbd, nvme } = await ground.serve(guest, options, {
    kind,
    // NBD devices share the exports; NVMe ones have each their own.
    count: Math.max(...specs.filter(({ kind: k }) => k !== 'nvme-tcp').map(({ mirrors }) => mirrors)),
    nvmeCount: specs.filter(({ kind: k }) => k === 'nvme-tcp').reduce((sum, { mirrors }) => sum + mirrors, 0),
  });
  const competitors: Competitor[] = [];
  for (const spec of specs) {
    onProgress(`Attaching ${spec.name}`);
    competitors.push(
      await competitorOrFailure(spec.name, () => guest.attach(spec, { sizeBytes, nbd, nvme })),
    );
  }
  const samples = await runRounds({
    ...options,
    jobs: selectJobs(quick && options.only === null ? QUICK_JOBS : GUEST_JOBS, options.only),
    competitors,
    rounds: options.rounds ?? (quick ? 3 : 5),
  });
  return { samples, guest };
}

/** The same samples once more: each device with several mirrors against itself with one. Null when there is no such pair. */
function secondMirrors(
  specs: readonly DeviceSpec[],
  samples: readonly Sample[],
): { layout: ReportLayout; samples: readonly Sample[] } | null {
  const baselines: Record<string, string> = {};
  for (const { name, mirrors } of specs) {
    const single = name.replace(/-x\d+$/, '');
    if (mirrors === 1 || !specs.some((spec) => spec.name === single)) continue;
    baselines[name] = single;
    baselines[single] = single;
  }
  if (Object.keys(baselines).length === 0) return null;
  return {
    layout: { ...GUEST_LAYOUT, baselines, values: GUEST_LAYOUT.values.slice(0, 4) },
    samples: samples.filter(({ competitor, job }) => competitor in baselines && job.includes('write')),
  };
}
