/** What the control plane measures. Counts of records are read when they are asked for, so they cannot drift. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { Context } from './domain/context.ts';
import type { Rebuilder } from './domain/rebuilds.ts';
import { agents, deviceTombstones, nodes, replicaTombstones, volumes } from './domain/records.ts';

export interface HttpMetrics {
  observe(request: { method: string; route: string; status: number; seconds: number }): void;
}

export function createHttpMetrics(registry: Registry): HttpMetrics {
  const labelNames = ['method', 'route', 'status'] as const;
  const requests = new Counter({
    name: 'blockwire_control_http_requests_total',
    help: 'REST requests answered.',
    labelNames,
    registers: [registry],
  });
  const durations = new Histogram({
    name: 'blockwire_control_http_request_duration_seconds',
    help: 'Time from a REST request to its answer.',
    labelNames: ['method', 'route'] as const,
    buckets: [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30],
    registers: [registry],
  });
  return {
    observe: ({ method, route, status, seconds }) => {
      requests.inc({ method, route, status: String(status) });
      durations.observe({ method, route }, seconds);
    },
  };
}

/** Gauges of the cluster's state; every state is there, also at zero. */
export function createStateMetrics(
  registry: Registry,
  { context, rebuilder }: { readonly context: Context; readonly rebuilder: Rebuilder },
): void {
  const { store, nodeFleet, agentFleet } = context;
  createRebuildMetrics(registry, { context, rebuilder });
  const stateGauge = (name: string, help: string, label: string, count: () => Promise<Counts>): void => {
    new Gauge({
      name,
      help,
      labelNames: [label],
      registers: [registry],
      async collect() {
        for (const [key, value] of Object.entries(await count())) this.set({ [label]: key }, value);
      },
    });
  };
  stateGauge('blockwire_control_volumes', 'Volumes by state.', 'state', async () =>
    tally(
      ['creating', 'available', 'inUse'],
      (await volumes.list(store)).map(({ value }) => value.state),
    ),
  );
  stateGauge('blockwire_control_replicas', 'Replicas by state.', 'state', async () =>
    tally(
      ['inSync', 'rebuilding', 'stale'],
      (await volumes.list(store)).flatMap(({ value }) => value.replicas.map(({ state }) => state)),
    ),
  );
  stateGauge('blockwire_control_nodes', 'Storage nodes by liveness.', 'state', async () => {
    const known = await nodes.list(store);
    const online = known.filter(({ value }) => nodeFleet.isOnline(value.id)).length;
    return { online, offline: known.length - online };
  });
  stateGauge('blockwire_control_agents', 'Agents by liveness.', 'state', async () => {
    const known = await agents.list(store);
    const online = known.filter(({ value }) => agentFleet.isOnline(value.id)).length;
    return { online, offline: known.length - online };
  });
  stateGauge(
    'blockwire_control_commands_outstanding',
    'Commands that wait for their outcome.',
    'fleet',
    async () => ({ nodes: nodeFleet.outstandingCount, agents: agentFleet.outstandingCount }),
  );
  stateGauge('blockwire_control_tombstones', 'Deletions that wait for their owner.', 'kind', async () => ({
    replica: (await replicaTombstones.list(store)).length,
    device: (await deviceTombstones.list(store)).length,
  }));
}

/** Rebuilds under way, and every change of a state. */
function createRebuildMetrics(
  registry: Registry,
  { context, rebuilder }: { readonly context: Context; readonly rebuilder: Rebuilder },
): void {
  const labelNames = ['volume', 'node'] as const;
  const total = new Gauge({
    name: 'blockwire_control_rebuild_bytes',
    help: 'What a rebuild under way has to copy, as far as it is known.',
    labelNames,
    registers: [registry],
  });
  new Gauge({
    name: 'blockwire_control_rebuild_copied_bytes',
    help: 'What a rebuild under way has copied.',
    labelNames,
    registers: [registry],
    async collect() {
      this.reset();
      total.reset();
      for (const { value: volume } of await volumes.list(context.store)) {
        for (const replica of volume.replicas) {
          const progress = rebuilder.progress.of(volume, replica);
          if (progress === null) continue;
          const labels = { volume: volume.id, node: replica.nodeId };
          this.set(labels, progress.copiedBytes);
          total.set(labels, progress.totalBytes);
        }
      }
    },
  });
  const events = new Counter({
    name: 'blockwire_control_events_total',
    help: 'Changes of state by type, such as replica.stale.',
    labelNames: ['type'],
    registers: [registry],
  });
  const regions = new Counter({
    name: 'blockwire_control_regions_total',
    help: 'Regions of 1 MiB that a scrub or a read found damaged or different, and those made good again.',
    labelNames: ['result'],
    registers: [registry],
  });
  for (const result of ['mismatched', 'repaired']) regions.inc({ result }, 0);
  context.events.on('change', (event) => {
    events.inc({ type: event.type });
    if (event.type === 'replica.damaged') regions.inc({ result: 'mismatched' }, event.regions);
    if (event.type === 'replica.repaired') regions.inc({ result: 'repaired' }, event.regions);
    if (event.type !== 'volume.scrubbed') return;
    regions.inc({ result: 'mismatched' }, event.mismatchedRegions);
    regions.inc({ result: 'repaired' }, event.repairedRegions);
  });
}

type Counts = Record<string, number>;

function tally(states: readonly string[], seen: readonly string[]): Counts {
  const counts: Counts = Object.fromEntries(states.map((state) => [state, 0]));
  for (const state of seen) counts[state] = (counts[state] ?? 0) + 1;
  return counts;
}
