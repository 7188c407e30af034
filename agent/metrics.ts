/** The agent's metrics: the workers' shared counters and histograms, read when Prometheus asks. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import { CounterIndex, openCounters, openLatency } from './datapath/counters.ts';
import {
  DEVICE_LATENCY,
  LATENCY_KINDS,
  type LatencyHistogram,
  latencyBucketEndUs,
  readLatency,
  replicaLatency,
} from './datapath/latency.ts';
import { MEMBER_STATES, type MemberState } from './datapath/members.ts';

/** What is read of a device; BlockDevice is one. */
export interface MeteredDevice {
  readonly path: string;
  readonly datapath: string;
  readonly io: MeteredIo;
}

/** VolumeIo is one. */
export interface MeteredIo {
  readonly volumeId: string;
  readonly ioState: string;
  readonly replicas: readonly {
    readonly nodeId: string;
    readonly state: MemberState;
    /** The workers' number of the replica; null for one that they do not know. */
    readonly slot: number | null;
    readonly connected: boolean;
  }[];
  readonly checkpointCount: number;
  readonly isHoldingWrites: boolean;
  /** By queue, each from `createCounters`. */
  readonly queueMemories: readonly SharedArrayBuffer[];
}

interface Total {
  readonly name: string;
  readonly help: string;
  /** Counter by the value of the label `operation`; an empty one where operations are not told apart. */
  readonly byOperation: Readonly<Record<string, number>>;
}

const TOTALS: readonly Total[] = [
  {
    name: 'blockwire_agent_requests_total',
    help: 'Requests taken from the kernel.',
    byOperation: {
      read: CounterIndex.readOps,
      write: CounterIndex.writeOps,
      flush: CounterIndex.flushOps,
      trim: CounterIndex.trimOps,
    },
  },
  {
    name: 'blockwire_agent_bytes_total',
    help: 'Bytes of the requests taken.',
    byOperation: { read: CounterIndex.readBytes, write: CounterIndex.writeBytes },
  },
  {
    name: 'blockwire_agent_errors_total',
    help: 'Requests answered with an error.',
    byOperation: { '': CounterIndex.errors },
  },
  {
    name: 'blockwire_agent_read_errors_total',
    help: 'Reads that a replica answered with an error; another one was asked then.',
    byOperation: { '': CounterIndex.readErrors },
  },
  {
    name: 'blockwire_agent_failovers_total',
    help: 'Reads moved to another replica.',
    byOperation: { '': CounterIndex.failovers },
  },
  {
    name: 'blockwire_agent_retries_total',
    help: 'Writes sent again to a replica that was away.',
    byOperation: { '': CounterIndex.retries },
  },
  {
    name: 'blockwire_agent_overlaps_total',
    help: 'Writes held back by an overlapping one.',
    byOperation: { '': CounterIndex.overlaps },
  },
  {
    name: 'blockwire_agent_zero_copy_sends_total',
    help: 'Payloads of writes handed to the kernel without a copy.',
    byOperation: { '': CounterIndex.zeroCopySends },
  },
  {
    name: 'blockwire_agent_zero_copy_sends_copied_total',
    help: 'Zero-copy sends that the kernel copied after all.',
    byOperation: { '': CounterIndex.zeroCopyCopied },
  },
  {
    name: 'blockwire_agent_ring_enters_total',
    help: 'Calls of io_uring_enter.',
    byOperation: { '': CounterIndex.enters },
  },
  {
    name: 'blockwire_agent_ring_sqes_total',
    help: 'Operations submitted to io_uring.',
    byOperation: { '': CounterIndex.sqes },
  },
  {
    name: 'blockwire_agent_polls_total',
    help: 'Waits that began by polling (--busy-poll).',
    byOperation: { '': CounterIndex.polls },
  },
  {
    name: 'blockwire_agent_poll_hits_total',
    help: 'Of those, the ones that polling ended before the worker slept.',
    byOperation: { '': CounterIndex.pollHits },
  },
];

const PER_VOLUME = ['volume', 'device'] as const;
const PER_QUEUE = [...PER_VOLUME, 'queue'] as const;

export function registerAgentMetrics(registry: Registry, devices: () => readonly MeteredDevice[]): void {
  for (const { name, help, byOperation } of TOTALS) {
    new Counter({
      name,
      help,
      labelNames: 'read' in byOperation ? [...PER_QUEUE, 'operation'] : PER_QUEUE,
      registers: [registry],
      collect() {
        this.reset();
        for (const { labels, counters } of queuesOf(devices())) {
          for (const [operation, index] of Object.entries(byOperation)) {
            this.inc(operation === '' ? labels : { ...labels, operation }, counters[index]!);
          }
        }
      },
    });
  }
  new Gauge({
    name: 'blockwire_agent_in_flight',
    help: 'Requests taken and not yet answered.',
    labelNames: PER_QUEUE,
    registers: [registry],
    collect() {
      this.reset();
      for (const { labels, counters } of queuesOf(devices()))
        this.set(labels, counters[CounterIndex.inFlight]!);
    },
  });
  new Gauge({
    name: 'blockwire_agent_device_info',
    help: 'One for each device, with the data path in use.',
    labelNames: [...PER_VOLUME, 'datapath'],
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) this.set({ ...labelsOf(device), datapath: device.datapath }, 1);
    },
  });
  new Gauge({
    name: 'blockwire_agent_io_state',
    help: 'One for the state that holds: ok, waiting (no in-sync replica answers), failing (for longer than the I/O timeout).',
    labelNames: ['volume', 'device', 'state'],
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) {
        for (const state of ['ok', 'waiting', 'failing'])
          this.set({ ...labelsOf(device), state }, device.io.ioState === state ? 1 : 0);
      }
    },
  });
  new Gauge({
    name: 'blockwire_agent_replica_connected',
    help: 'Whether the agent is connected to a replica.',
    labelNames: ['volume', 'node', 'state'],
    registers: [registry],
    collect() {
      this.reset();
      for (const { io } of devices()) {
        for (const { nodeId, state, connected } of io.replicas) {
          this.set({ volume: io.volumeId, node: nodeId, state }, connected ? 1 : 0);
        }
      }
    },
  });
  new Gauge({
    name: 'blockwire_agent_replicas',
    help: 'Replicas by the state that the agent goes by: inSync, rebuilding, stale.',
    labelNames: [...PER_VOLUME, 'state'],
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) {
        for (const state of MEMBER_STATES) {
          const count = device.io.replicas.filter((replica) => replica.state === state).length;
          this.set({ ...labelsOf(device), state }, count);
        }
      }
    },
  });
  new Counter({
    name: 'blockwire_agent_checkpoints_total',
    help: 'Checkpoints sent: every write before is on all replicas.',
    labelNames: PER_VOLUME,
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) this.inc(labelsOf(device), device.io.checkpointCount);
    },
  });
  new Gauge({
    name: 'blockwire_agent_writes_held',
    help: 'Whether writes are held back for a snapshot.',
    labelNames: PER_VOLUME,
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) this.set(labelsOf(device), device.io.isHoldingWrites ? 1 : 0);
    },
  });
  new SharedHistogram(registry, {
    name: 'blockwire_agent_request_duration_seconds',
    help: 'From the kernel handing a request over to its completion, all queues of a device.',
    labelNames: [...PER_VOLUME, 'operation'],
    *read() {
      for (const device of devices()) {
        const queues = device.io.queueMemories.map(openLatency);
        for (const operation of LATENCY_KINDS) {
          const histogram = readLatency(queues, DEVICE_LATENCY, operation);
          yield { labels: { ...labelsOf(device), operation }, histogram };
        }
      }
    },
  });
  new SharedHistogram(registry, {
    name: 'blockwire_agent_replica_request_duration_seconds',
    help: "From a request's way to a replica to its answer, all queues of a device.",
    labelNames: ['volume', 'node', 'operation'],
    *read() {
      for (const { io } of devices()) {
        const queues = io.queueMemories.map(openLatency);
        for (const { nodeId, slot } of io.replicas) {
          if (slot === null) continue;
          for (const operation of LATENCY_KINDS) {
            const histogram = readLatency(queues, replicaLatency(slot), operation);
            yield { labels: { volume: io.volumeId, node: nodeId, operation }, histogram };
          }
        }
      }
    },
  });
}

function labelsOf(device: MeteredDevice): { volume: string; device: string } {
  return { volume: device.io.volumeId, device: device.path };
}

function* queuesOf(devices: readonly MeteredDevice[]) {
  for (const device of devices) {
    for (const [queue, memory] of device.io.queueMemories.entries()) {
      yield { labels: { ...labelsOf(device), queue: String(queue) }, counters: openCounters(memory) };
    }
  }
}

type Labels = Readonly<Record<string, string>>;

/** Exported bounds: powers of two, 16 us to 17 s. Every one of them is the end of a bucket. */
const LE_US = Array.from({ length: 21 }, (_, index) => 2 ** (4 + index));

/** A histogram whose numbers are elsewhere: read at each scrape, never observed. */
class SharedHistogram extends Histogram {
  /** Never observed: its description, without values. */
  readonly #shape: Histogram;
  readonly #read: () => Iterable<{ labels: Labels; histogram: LatencyHistogram }>;

  constructor(
    registry: Registry,
    options: {
      name: string;
      help: string;
      labelNames: readonly string[];
      read: () => Iterable<{ labels: Labels; histogram: LatencyHistogram }>;
    },
  ) {
    const { name, help, labelNames, read } = options;
    const buckets = LE_US.map((us) => us / 1e6);
    super({ name, help, labelNames, buckets, registers: [registry] });
    this.#shape = new Histogram({ name, help, labelNames, buckets, registers: [] });
    this.#read = read;
  }

  override async get(): ReturnType<Histogram['get']> {
    const shape = await this.#shape.get();
    const values: { metricName: string; labels: Labels; value: number }[] = [];
    for (const { labels, histogram } of this.#read()) {
      const line = (suffix: string, value: number, more: Labels = {}) =>
        values.push({ metricName: `${shape.name}_${suffix}`, labels: { ...labels, ...more }, value });
      let bucket = 0;
      let below = 0;
      for (const us of LE_US) {
        while (bucket < histogram.buckets.length && latencyBucketEndUs(bucket) <= us) {
          below += histogram.buckets[bucket++]!;
        }
        line('bucket', below, { le: String(us / 1e6) });
      }
      line('bucket', histogram.count, { le: '+Inf' });
      line('sum', histogram.sumUs / 1e6);
      line('count', histogram.count);
    }
    return { ...shape, values };
  }

  /** What the registry's text takes. */
  getForPromString(): ReturnType<Histogram['get']> {
    return this.get();
  }
}
