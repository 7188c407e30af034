/** The agent's command line. */
import { hostname } from 'node:os';
import { parseArgs } from 'node:util';
import { parseHostPort } from '@blockwire/native/sockets.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';

export interface AgentConfig {
  /** Stable across restarts; the host's name by default. */
  readonly id: string;
  /** host:port of the control plane's gRPC. */
  readonly control: string;
  readonly metricsHost: string;
  readonly metricsPort: number;
  /** auto, fused, splice or copy: for attachments that do not ask for one. So are the next five. */
  readonly datapath: string;
  readonly queues: number;
  readonly queueDepth: number;
  readonly blockSizeBytes: number;
  /** Zero: I/O waits for a replica for as long as it takes. */
  readonly ioTimeoutMs: number;
  readonly ioSizeBytesMax: number;
  readonly replicaTimeoutMs: number;
  /** Zero: queues sleep at once. */
  readonly busyPollUsMax: number;
  /** Where the lock and the socket are. */
  readonly runDir: string;
  /** Take over from the process of this agent that runs. */
  readonly handover: boolean;
  /** Print one JSON line on stdout when ready. */
  readonly json: boolean;
}

/** As KVM's halt polling (halt_poll_ns). */
export const BUSY_POLL_US_DEFAULT = 200;

export const AGENT_USAGE = `blockwire agent: serves volumes as /dev/ublkbN on this host
  --id NAME                  stable name of this agent (default: the host's name)
  --control HOST:PORT        the control plane's gRPC (default 127.0.0.1:7401)
  --metrics-host ADDRESS     where /metrics and /healthz listen (default 127.0.0.1)
  --metrics-port PORT        (default 7421, 0 = any)
  --datapath MODE            auto, fused, splice or copy (default auto)
  --queues N                 queues of one device, a worker each, at most one a CPU (default 1)
  --queue-depth N            requests in flight of one queue, 1..4096 (default 128)
  --block-size BYTES         logical block, 512 or 4096 (default 512)
  --io-size BYTES            largest I/O, a multiple of 4096 up to 32 MiB (default 1048576)
  --replica-timeout MS       silence after which a replica is reported lost (default 1000)
  --io-timeout MS            I/O fails when no in-sync replica answers for so long; 0: it waits (default 0)
  --busy-poll US             while few requests are in flight and answers come within so long, a queue polls for them
                             instead of sleeping; 0: never (default ${BUSY_POLL_US_DEFAULT})
  --run-dir DIR              lock and socket of this agent (default /run/blockwire)
  --handover                 take over from the agent of this name that runs (blockwire agent handover)
  --json                     print one JSON line when ready`;

/** Throws BW_INVALID_ARGUMENT with what is wrong and the usage. */
export function parseConfig(argv: readonly string[]): AgentConfig {
  const { values } = parse(argv);
  const control = values.control ?? '127.0.0.1:7401';
  if (parseHostPort(control) === null) throw invalid(`--control '${control}' is not host:port`);
  const ioSizeBytesMax = integer('--io-size', values['io-size'] ?? '1048576', 4096, 32 << 20);
  if (ioSizeBytesMax % 4096 !== 0) throw invalid('--io-size must be a multiple of 4096');
  const blockSizeBytes = integer('--block-size', values['block-size'] ?? '512', 512, 4096);
  if (blockSizeBytes !== 512 && blockSizeBytes !== 4096) throw invalid('--block-size is 512 or 4096');
  return {
    id: values.id ?? hostname(),
    control,
    metricsHost: values['metrics-host'] ?? '127.0.0.1',
    metricsPort: integer('--metrics-port', values['metrics-port'] ?? '7421', 0, 65535),
    datapath: values.datapath ?? 'auto',
    queues: integer('--queues', values.queues ?? '1', 1, 256),
    blockSizeBytes,
    ioTimeoutMs: integer('--io-timeout', values['io-timeout'] ?? '0', 0, 86_400_000),
    runDir: values['run-dir'] ?? '/run/blockwire',
    handover: values.handover ?? false,
    queueDepth: integer('--queue-depth', values['queue-depth'] ?? '128', 1, 4096),
    ioSizeBytesMax,
    replicaTimeoutMs: integer('--replica-timeout', values['replica-timeout'] ?? '1000', 100, 3_600_000),
    busyPollUsMax: integer('--busy-poll', values['busy-poll'] ?? String(BUSY_POLL_US_DEFAULT), 0, 10_000),
    json: values.json ?? false,
  };
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({
      args: [...argv],
      options: {
        id: { type: 'string' },
        control: { type: 'string' },
        'metrics-host': { type: 'string' },
        'metrics-port': { type: 'string' },
        datapath: { type: 'string' },
        queues: { type: 'string' },
        'queue-depth': { type: 'string' },
        'block-size': { type: 'string' },
        'io-timeout': { type: 'string' },
        'run-dir': { type: 'string' },
        handover: { type: 'boolean' },
        'io-size': { type: 'string' },
        'replica-timeout': { type: 'string' },
        'busy-poll': { type: 'string' },
        json: { type: 'boolean' },
      },
    });
  } catch (error) {
    throw invalid(error instanceof Error ? error.message : String(error));
  }
}

function integer(name: string, text: string, min: number, max: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw invalid(`${name} '${text}' is not a whole number from ${min} to ${max}`);
}

function invalid(message: string): BlockwireError {
  return new BlockwireError('BW_INVALID_ARGUMENT', `${message}\n${AGENT_USAGE}`);
}
