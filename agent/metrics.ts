/** The agent's metrics: the workers' shared counters, read when Prometheus asks. */
import { Counter, Gauge, type Registry } from 'prom-client';
import { CounterIndex } from './datapath/counters.ts';
import type { BlockDevice } from './device.ts';

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
    name: 'blockwire_agent_failovers_total',
    help: 'Reads moved to another replica.',
    byOperation: { '': CounterIndex.failovers },
  },
  {
    name: 'blockwire_agent_overlaps_total',
    help: 'Writes held back by an overlapping one.',
    byOperation: { '': CounterIndex.overlaps },
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
];

export function registerAgentMetrics(registry: Registry, devices: () => readonly BlockDevice[]): void {
  const perVolume = ['volume', 'device'] as const;
  for (const { name, help, byOperation } of TOTALS) {
    new Counter({
      name,
      help,
      labelNames: [...perVolume, 'operation'],
      registers: [registry],
      collect() {
        this.reset();
        for (const device of devices()) {
          for (const [operation, index] of Object.entries(byOperation)) {
            const labels = { volume: device.volumeId, device: device.path };
            this.inc(operation === '' ? labels : { ...labels, operation }, device.counters[index]!);
          }
        }
      },
    });
  }
  new Gauge({
    name: 'blockwire_agent_in_flight',
    help: 'Requests taken and not yet answered.',
    labelNames: perVolume,
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) {
        this.set({ volume: device.volumeId, device: device.path }, device.counters[CounterIndex.inFlight]!);
      }
    },
  });
  new Gauge({
    name: 'blockwire_agent_device_info',
    help: 'One for each device, with the data path in use.',
    labelNames: [...perVolume, 'datapath'],
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) {
        this.set({ volume: device.volumeId, device: device.path, datapath: device.datapath }, 1);
      }
    },
  });
  new Gauge({
    name: 'blockwire_agent_replica_connected',
    help: 'Whether the agent is connected to a replica.',
    labelNames: ['volume', 'node', 'in_sync'],
    registers: [registry],
    collect() {
      this.reset();
      for (const device of devices()) {
        for (const { nodeId, inSync, connected } of device.replicas) {
          this.set({ volume: device.volumeId, node: nodeId, in_sync: String(inSync) }, connected ? 1 : 0);
        }
      }
    },
  });
}
