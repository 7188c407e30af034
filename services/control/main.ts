/**
 * The control plane process.
 *
 *     node services/control/main.ts --data-dir DIR [--host H] [--rest-port P] [--grpc-port P] [--json]
 *       [--rebuilds-per-node N] [--rebuild-rate SIZE] [--replace-after TIME]
 *       [--scrub-interval TIME] [--scrub-rate SIZE]
 *
 * Each option can come from the environment too, as BLOCKWIRE_CONTROL_DATA_DIR and so on. With --json it
 * prints one line when it is ready: {"rest": "http://host:port", "grpc": "host:port"}.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { Lifecycle } from '@blockwire/shared/lifecycle.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { type ControlConfig, readConfig } from './config.ts';
import { startControl } from './server.ts';
import { openSqliteStore } from './store/sqlite.ts';
import type { MetadataStore } from './store/store.ts';

async function main(): Promise<void> {
  const log = createLogger('control');
  const lifecycle = new Lifecycle(log);
  lifecycle.exitOnSignals();
  try {
    const config = readConfig(process.argv.slice(2), process.env);
    const store = openStore(config);
    const { host, restPort, grpcPort, policy } = config;
    const { rest, grpc } = await startControl({ host, restPort, grpcPort, store, log, lifecycle, policy });
    log.info({ rest, grpc, dataDir: config.dataDir }, 'ready');
    if (config.json) process.stdout.write(`${JSON.stringify({ rest, grpc })}\n`);
  } catch (thrown) {
    const { code, message } = toBlockwireError(thrown);
    log.fatal({ code }, message);
    await lifecycle.stop();
    process.exit(1);
  }
}

function openStore({ dataDir }: ControlConfig): MetadataStore {
  try {
    mkdirSync(dataDir, { recursive: true });
  } catch (error) {
    throw new BlockwireError('BW_IO', `the data directory ${dataDir} cannot be made: ${String(error)}`, {
      cause: error,
    });
  }
  return openSqliteStore(join(dataDir, 'control.db'));
}

if (import.meta.main) await main();
