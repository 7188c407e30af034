/** The node's own metrics: read from the workers' shared counters when they are scraped. */
import { createRegistry } from '@blockwire/shared/observability.ts';
import { Counter, Gauge, type Registry } from 'prom-client';
import type { DataPlane } from './data/data-plane.ts';
import { Stat, type StatName } from './data/stats.ts';
import type { ReplicaStore } from './store/replica-store.ts';
import type { Volumes } from './volumes.ts';

const COUNTERS: readonly (readonly [name: string, stat: StatName, help: string])[] = [
  ['connections_accepted_total', 'connectionsAccepted', 'NBD connections accepted'],
  ['connections_refused_total', 'connectionsRefused', 'NBD connections refused for lack of room'],
  ['connections_failed_total', 'connectionsFailed', 'NBD connections that broke off or broke the protocol'],
  ['connection_handovers_total', 'handovers', 'NBD connections handed to the worker of their volume'],
  ['read_requests_total', 'reads', 'reads'],
  ['write_requests_total', 'writes', 'writes'],
  ['flush_requests_total', 'flushes', 'flushes'],
  ['trim_requests_total', 'trims', 'trims'],
  ['write_zeroes_requests_total', 'writeZeroes', 'write zeroes'],
  ['other_requests_total', 'others', 'requests that touch no data'],
  ['read_bytes_total', 'readBytes', 'bytes of reads'],
  ['written_bytes_total', 'writtenBytes', 'bytes of writes'],
  ['request_errors_total', 'errors', 'requests refused'],
  ['io_errors_total', 'ioErrors', 'operations on data files that failed'],
  ['receives_total', 'receives', 'receive operations'],
  ['sends_total', 'sends', 'send operations'],
  ['overlap_waits_total', 'overlapWaits', 'writes that waited for an overlapping one'],
  ['memory_waits_total', 'memoryWaits', 'times a connection waited for memory'],
  ['read_modify_writes_total', 'readModifyWrites', 'writes of parts of blocks'],
  ['checksum_errors_total', 'checksumErrors', 'blocks whose content is not what was written'],
  ['checksum_retries_total', 'checksumRetries', 'reads done again because a write was under way beside them'],
  ['region_waits_total', 'regionWaits', 'writes that waited for their region to be marked on the disk'],
  ['region_page_writes_total', 'regionPageWrites', 'pages of region maps written'],
  ['ring_enters_total', 'enters', 'calls of io_uring_enter'],
  [
    'heap_allocated_bytes_total',
    'heapAllocatedBytes',
    'bytes allocated on JavaScript heaps; not per request',
  ],
  ['gc_runs_total', 'gcRuns', 'garbage collections on JavaScript heaps'],
  ['gc_seconds_total', 'gcSeconds', 'time of garbage collection on JavaScript heaps'],
];

/** Everything that `/metrics` answers. */
export function createNodeMetrics(plane: DataPlane, store: ReplicaStore, volumes: Volumes): Registry {
  const registry = createRegistry();
  const registers = [registry];
  for (const [suffix, stat, help] of COUNTERS) {
    new Counter({
      name: `blockwire_node_${suffix}`,
      help,
      labelNames: ['worker'],
      registers,
      collect() {
        this.reset();
        for (const [worker, stats] of plane.stats.entries()) this.inc({ worker }, stats[Stat[stat]]!);
      },
    });
  }
  for (const [suffix, stat, help] of [
    ['connections', 'connections', 'NBD connections'],
    ['pool_free_bytes', 'poolFreeBytes', 'memory for requests that is free'],
    ['heap_used_bytes', 'heapUsedBytes', 'JavaScript heap in use'],
  ] as const) {
    new Gauge({
      name: `blockwire_node_${suffix}`,
      help,
      labelNames: ['worker'],
      registers,
      collect() {
        for (const [worker, stats] of plane.stats.entries()) this.set({ worker }, stats[Stat[stat]]!);
      },
    });
  }
  new Counter({
    name: 'blockwire_node_resync_received_bytes_total',
    help: 'bytes of data received from other replicas',
    registers,
    collect() {
      this.reset();
      this.inc(volumes.resyncs.receivedBytes);
    },
  });
  new Counter({
    name: 'blockwire_node_scrub_differences_total',
    help: 'regions in which a scrub found other content than at the other replica, with good checksums on both sides',
    registers,
    collect() {
      this.reset();
      this.inc(volumes.scrubs.differingCount);
    },
  });
  gauge('replicas', 'replicas that are served', () => store.replicas.size);
  gauge('replicas_damaged', 'replicas that cannot be served', () => store.damaged.size);
  gauge('replicas_buffered', 'replicas whose file system refuses O_DIRECT', () =>
    [...store.replicas.values()].reduce((count, { direct }) => count + (direct ? 0 : 1), 0),
  );
  gauge('capacity_bytes', 'bytes that replicas may claim in all', () => store.capacityBytes());
  gauge('free_bytes', 'bytes that new replicas may claim', () => store.freeBytes());
  return registry;

  function gauge(suffix: string, help: string, value: () => number): void {
    new Gauge({
      name: `blockwire_node_${suffix}`,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  }
}
