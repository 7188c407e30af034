/**
 * Every datapath of ours with one and with two mirrors against the kernel's nbd client, in one boot: over a network with
 * offloads to servers outside the guest.
 */
import { Guest } from './guest.ts';
import { competitorOrFailure, runRounds } from './rounds.ts';
import type { SuiteOptions, SuiteResult } from './suite.ts';
import {
  EXPORT_BYTES,
  GUEST_JOBS,
  GUEST_LAYOUT,
  guestFacts,
  guestServerKind,
  selectJobs,
  startGuestServers,
} from './suite-first.ts';

const DATAPATHS = ['fused', 'copy'];
const MIRRORS_MAX = 2;

export async function suiteAgent(options: SuiteOptions): Promise<SuiteResult> {
  const { quick, cleanup, onProgress } = options;
  const timing = quick ? { rampS: 1, runtimeS: 5 } : { rampS: 2, runtimeS: 8 };
  const kind = guestServerKind(options.server ?? 'nbdkit');
  const guest = await Guest.boot({ network: 'tap', timing, cleanup, onProgress });
  onProgress(`Starting the servers (${kind})`);
  const servers = await startGuestServers({ guest, kind, count: MIRRORS_MAX, cleanup });
  onProgress('Attaching the devices');
  const { baseline } = GUEST_LAYOUT;
  const competitors = [
    await competitorOrFailure(baseline, () =>
      guest.attachKernelNbd(baseline, { server: servers[0]!, connections: 1 }),
    ),
  ];
  for (let mirrors = 1; mirrors <= MIRRORS_MAX; mirrors++) {
    for (const datapath of DATAPATHS) {
      const name = mirrors === 1 ? datapath : `${datapath} x${mirrors}`;
      const wanted = { datapath, sizeBytes: EXPORT_BYTES, servers: servers.slice(0, mirrors) };
      competitors.push(await competitorOrFailure(name, () => guest.attachOurs(name, wanted)));
    }
  }
  const samples = await runRounds({
    ...options,
    jobs: selectJobs(GUEST_JOBS, options.only),
    competitors,
    rounds: options.rounds ?? (quick ? 3 : 5),
  });
  return {
    sections: [{ title: `One and two mirrors, server ${kind}, TAP`, layout: GUEST_LAYOUT, samples }],
    facts: guestFacts(guest, kind),
  };
}
