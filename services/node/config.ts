/** The node's command line. */
import { parseArgs } from 'node:util';
import { BlockwireError } from '@blockwire/shared/errors.ts';

export interface ExportSetting {
  readonly name: string;
  readonly sizeBytes: number;
}

export interface NodeConfig {
  readonly id: string;
  readonly dataDir: string;
  readonly host: string;
  /** 0 takes any free port. */
  readonly nbdPort: number;
  readonly metricsPort: number;
  /** host:port that clients are told; null: host and the bound port. */
  readonly advertise: string | null;
  /** host:port that other nodes are told; null: the same as clients. */
  readonly peerAddress: string | null;
  /** host:port of the control plane's gRPC; null: the node serves what its data directory holds. */
  readonly control: string | null;
  readonly zone: string;
  readonly capacityBytes: number | null;
  readonly workers: number;
  readonly poolBytes: number;
  readonly connectionsMax: number;
  /** Replicas to be created at start if they are not there: standalone use. */
  readonly exports: readonly ExportSetting[];
  /** One JSON line on stdout when ready. */
  readonly json: boolean;
}

export const NODE_USAGE = `usage: blockwire node --id ID --data-dir DIR [options]
  --host ADDRESS          address to listen at (default 127.0.0.1)
  --nbd-port PORT         NBD (default 10809; 0 takes any)
  --metrics-port PORT     /metrics and /healthz (default 7411; 0 takes any)
  --advertise HOST:PORT   NBD address that others are told (default: host and port above)
  --peer-address H:PORT   the same for other nodes, where they know it by another (default: as advertised)
  --control HOST:PORT     control plane's gRPC; without it the node stands alone
  --zone NAME             for placement: replicas are spread over zones
  --capacity-bytes BYTES  what replicas may claim in all (default: what the file system has)
  --workers N             data workers, one ring each (default 1)
  --buffer-mib N          memory of each worker for requests (default 64)
  --connections N         clients of each worker (default 256)
  --export NAME=BYTES     create this replica at start if it is not there; may be repeated
  --json                  one JSON line on stdout when ready`;

function bad(message: string): BlockwireError {
  return new BlockwireError('BW_INVALID_ARGUMENT', `${message}\n${NODE_USAGE}`);
}

function integer(text: string, option: string, min: number, max: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= min && value <= max)) throw bad(`--${option} ${text}: a whole number from ${min} to ${max}`);
  return value;
}

function exportSetting(text: string): ExportSetting {
  const [name, size, rest] = text.split('=');
  if (!name || size === undefined || rest !== undefined) throw bad(`--export ${text}: NAME=BYTES`);
  return { name, sizeBytes: integer(size, 'export', 1, Number.MAX_SAFE_INTEGER) };
}

function hostPort(text: string, option: string): string {
  if (!/^.+:\d{1,5}$/.test(text)) throw bad(`--${option} ${text}: HOST:PORT`);
  return text;
}

/** Parses the arguments behind the program's name. Throws BW_INVALID_ARGUMENT with the usage. */
export function parseNodeArguments(argv: readonly string[]): NodeConfig {
  const text = { type: 'string' } as const;
  let values: ReturnType<typeof parse>;
  const parse = () =>
    parseArgs({
      args: [...argv],
      allowPositionals: false,
      options: {
        id: text,
        'data-dir': text,
        host: { ...text, default: '127.0.0.1' },
        'nbd-port': { ...text, default: '10809' },
        'metrics-port': { ...text, default: '7411' },
        advertise: text,
        'peer-address': text,
        control: text,
        zone: { ...text, default: '' },
        'capacity-bytes': text,
        workers: { ...text, default: '1' },
        'buffer-mib': { ...text, default: '64' },
        connections: { ...text, default: '256' },
        export: { ...text, multiple: true, default: [] },
        json: { type: 'boolean', default: false },
      },
    }).values;
  try {
    values = parse();
  } catch (error) {
    throw bad(error instanceof Error ? error.message : String(error));
  }
  if (!values.id) throw bad('--id is missing');
  if (!values['data-dir']) throw bad('--data-dir is missing');
  const capacity = values['capacity-bytes'];
  return {
    id: values.id,
    dataDir: values['data-dir'],
    host: values.host,
    nbdPort: integer(values['nbd-port'], 'nbd-port', 0, 65535),
    metricsPort: integer(values['metrics-port'], 'metrics-port', 0, 65535),
    advertise: values.advertise === undefined ? null : hostPort(values.advertise, 'advertise'),
    peerAddress:
      values['peer-address'] === undefined ? null : hostPort(values['peer-address'], 'peer-address'),
    control: values.control === undefined ? null : hostPort(values.control, 'control'),
    zone: values.zone,
    capacityBytes:
      capacity === undefined ? null : integer(capacity, 'capacity-bytes', 1, Number.MAX_SAFE_INTEGER),
    workers: integer(values.workers, 'workers', 1, 64),
    poolBytes: integer(values['buffer-mib'], 'buffer-mib', 8, 1024) * 2 ** 20,
    connectionsMax: integer(values.connections, 'connections', 1, 4096),
    exports: values.export.map(exportSetting),
    json: values.json,
  };
}
