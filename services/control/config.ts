/** The control plane's configuration: arguments first, then the environment, then defaults. */
import { parseArgs } from 'node:util';
import { BlockwireError } from '@blockwire/shared/errors.ts';

export interface ControlConfig {
  readonly host: string;
  readonly restPort: number;
  readonly grpcPort: number;
  readonly dataDir: string;
  /** Print one JSON line on stdout when ready. */
  readonly json: boolean;
}

const DEFAULTS = {
  host: '127.0.0.1',
  'rest-port': '7400',
  'grpc-port': '7401',
  'data-dir': '/var/lib/blockwire/control',
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
    json: values.json ?? false,
  };
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
        json: { type: 'boolean' },
      },
    }).values;
  } catch (error) {
    throw new BlockwireError('BW_INVALID_ARGUMENT', error instanceof Error ? error.message : String(error), {
      cause: error,
    });
  }
}
