/** The control plane's configuration: arguments first, then the environment, then defaults. */
import { parseArgs } from 'node:util';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { DEFAULT_POLICY, type Policy } from './domain/context.ts';

export interface ControlConfig {
  readonly host: string;
  readonly restPort: number;
  readonly grpcPort: number;
  readonly dataDir: string;
  readonly policy: Policy;
  /** Print one JSON line on stdout when ready. */
  readonly json: boolean;
}

const DEFAULTS = {
  host: '127.0.0.1',
  'rest-port': '7400',
  'grpc-port': '7401',
  'data-dir': '/var/lib/blockwire/control',
  'rebuilds-per-node': String(DEFAULT_POLICY.rebuildsPerNodeMax),
  'rebuild-rate': String(DEFAULT_POLICY.rebuildBytesPerSecond),
  'replace-after': `${DEFAULT_POLICY.replaceAfterMs / 1000}s`,
  'scrub-interval': `${DEFAULT_POLICY.scrubIntervalMs / 1000}s`,
  'scrub-rate': String(DEFAULT_POLICY.scrubBytesPerSecond),
} as const;

/** Throws BW_INVALID_ARGUMENT for an option that does not exist or has no valid value. */
export function readConfig(
  args: readonly string[],
  environment: Readonly<Record<string, string | undefined>>,
): ControlConfig {
  const values = parse(args);
  const option = (name: keyof typeof DEFAULTS): string =>
    values[name] ??
    environment[`BLOCKWIRE_CONTROL_${name.toUpperCase().replaceAll('-', '_')}`] ??
    DEFAULTS[name];
  const port = (name: 'rest-port' | 'grpc-port'): number => {
    const text = option(name);
    const value = Number(text);
    if (!/^[0-9]{1,5}$/.test(text) || value > 65535) {
      throw new BlockwireError(
        'BW_INVALID_ARGUMENT',
        `--${name} must be a port from 0 to 65535, not ${text}`,
      );
    }
    return value;
  };
  return {
    host: option('host'),
    restPort: port('rest-port'),
    grpcPort: port('grpc-port'),
    dataDir: option('data-dir'),
    policy: {
      rebuildsPerNodeMax: parseCount('rebuilds-per-node', option('rebuilds-per-node')),
      rebuildBytesPerSecond: parseBytes('rebuild-rate', option('rebuild-rate')),
      replaceAfterMs: parseDuration('replace-after', option('replace-after')) || Number.POSITIVE_INFINITY,
      scrubIntervalMs: parseDuration('scrub-interval', option('scrub-interval')) || Number.POSITIVE_INFINITY,
      scrubBytesPerSecond: parseBytes('scrub-rate', option('scrub-rate')),
    },
    json: values.json ?? false,
  };
}

function parseCount(name: string, text: string): number {
  const value = Number(text);
  if (/^[0-9]{1,4}$/.test(text) && value > 0) return value;
  throw invalid(name, 'a whole number from 1 on', text);
}

const BYTE_UNITS: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };

/** `200MiB`, `1G` or plain bytes. */
function parseBytes(name: string, text: string): number {
  const [, digits, unit = ''] = /^([0-9]{1,15})(?:([KMG])(?:iB)?)?$/.exec(text) ?? [];
  const value = Number(digits) * BYTE_UNITS[unit]!;
  if (digits !== undefined && Number.isSafeInteger(value)) return value;
  throw invalid(name, 'bytes, or a size such as 200MiB', text);
}

const TIME_UNITS_MS: Readonly<Record<string, number>> = {
  ...{ ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 },
};

/** `30s`, `10m`, `12h`, `7d` or `0`; milliseconds. */
function parseDuration(name: string, text: string): number {
  if (text === '0') return 0;
  const [, digits, unit = ''] = /^([0-9]{1,9})(ms|s|m|h|d)$/.exec(text) ?? [];
  if (digits !== undefined) return Number(digits) * TIME_UNITS_MS[unit]!;
  throw invalid(name, 'a time such as 30s, 10m, 12h or 7d, or 0', text);
}

function invalid(name: string, rule: string, text: string): BlockwireError {
  return new BlockwireError('BW_INVALID_ARGUMENT', `--${name} must be ${rule}, not ${text}`);
}

function parse(args: readonly string[]) {
  const text = { type: 'string' } as const;
  try {
    return parseArgs({
      args: [...args],
      options: {
        host: text,
        'rest-port': text,
        'grpc-port': text,
        'data-dir': text,
        'rebuilds-per-node': text,
        'rebuild-rate': text,
        'replace-after': text,
        'scrub-interval': text,
        'scrub-rate': text,
        json: { type: 'boolean' },
      },
    }).values;
  } catch (error) {
    throw new BlockwireError('BW_INVALID_ARGUMENT', error instanceof Error ? error.message : String(error), {
      cause: error,
    });
  }
}
