/**
 * The storage node, its parts in the order in which data meets them: store, data plane, volumes, control plane, metrics.
 * Stopped in reverse.
 */
import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoName } from '@blockwire/native/errors.ts';
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { Lifecycle } from '@blockwire/shared/lifecycle.ts';
import { createLogger, type Logger } from '@blockwire/shared/log.ts';
import { serveObservability } from '@blockwire/shared/observability.ts';
import { readVersion } from '@blockwire/shared/version.ts';
import { type NodeConfig, parseNodeArguments } from './config.ts';
import { DataPlane } from './data/data-plane.ts';
import { createNodeMetrics } from './metrics.ts';
import { Registration } from './registration.ts';
import { keepCapabilityKey, keepNodeId, readCapabilityKey } from './store/node-id.ts';
import { ReplicaStore } from './store/replica-store.ts';
import { Volumes } from './volumes.ts';

/** Longer than this, replicas that were not closed cleanly do not delay the node's being ready. */
const SERVE_MS_MAX = 5_000;

async function run(config: NodeConfig, log: Logger, lifecycle: Lifecycle): Promise<void> {
  const store = new ReplicaStore({
    directory: config.dataDir,
    capacityBytes: config.capacityBytes,
    bootId: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
    log,
  });
  lifecycle.onStop('store', () => store.close());
  keepNodeId(config.dataDir, config.id);

  let registration: Registration | null = null;
  const plane = await DataPlane.start({
    ...config,
    port: config.nbdPort,
    log,
    onWorkerLost: (error) => {
      // Nothing of what it had acknowledged is lost; whoever supervises this process starts it again.
      log.fatal({ err: error }, 'a data worker ended');
      process.exit(1);
    },
    onVolumeFailed: (id, errno) => {
      log.error({ volume: id, errno: errnoName(errno) }, 'the data file of a replica fails');
      volumes.noteFailure(id, errno);
    },
    onDamage: (id, offset) => registration?.reportDamage(id, offset),
  });
  lifecycle.onStop('data plane', async () => {
    await volumes.resyncs.stop();
    await volumes.scrubs.stop();
    await plane.stop();
    volumes.seal();
  });

  let key = readCapabilityKey(config.dataDir);
  if (key !== null) await plane.trust(key);
  const volumes = new Volumes({ store, server: plane, log });
  const served = volumes.serveAll();
  // A crashed node that has much to compute is there for its other volumes meanwhile.
  await Promise.race([served, sleep(SERVE_MS_MAX, undefined, { ref: false })]);
  served.catch((error: unknown) => log.error({ err: error }, 'not all replicas could be served'));
  for (const { name, sizeBytes } of config.exports) {
    await volumes.create({ volumeId: name, sizeBytes, generation: 0, epoch: 1 });
  }

  const nbdAddress = config.advertise ?? `${bracketed(config.host)}:${plane.port}`;
  if (config.control !== null) {
    const { control, id: nodeId, zone, peerAddress } = config;
    const version = readVersion();
    registration = new Registration({
      ...{ control, nodeId, nbdAddress, peerAddress, zone, version, store, volumes, log },
      onCapabilityKey: async (told) => {
        if (key !== null && Buffer.compare(key, told) === 0) return;
        keepCapabilityKey(config.dataDir, told);
        key = told;
        await plane.trust(told);
      },
    });
    const started = registration;
    lifecycle.onStop('registration', () => started.stop());
  }

  const server = await serveObservability({
    host: config.host,
    port: config.metricsPort,
    registry: createNodeMetrics(plane, store, volumes),
    health: () => {
      const problems = volumes.problems();
      const control =
        registration === null ? 'none' : registration.connected ? 'ok' : 'not connected; serving on';
      return { healthy: Object.keys(problems).length === 0, parts: { nbd: 'ok', control, ...problems } };
    },
  });
  lifecycle.onStop('metrics', () => {
    server.close();
    server.closeAllConnections();
  });

  const metricsPort = (server.address() as AddressInfo).port;
  const ready = {
    id: config.id,
    nbd: nbdAddress,
    metrics: `http://${bracketed(config.host)}:${metricsPort}`,
  };
  log.info({ ...ready, replicas: store.replicas.size, workers: config.workers }, 'ready');
  if (config.json) process.stdout.write(`${JSON.stringify(ready)}\n`);
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

async function main(): Promise<void> {
  const log = createLogger('node');
  const lifecycle = new Lifecycle(log);
  lifecycle.exitOnSignals();
  try {
    await run(parseNodeArguments(process.argv.slice(2)), log, lifecycle);
  } catch (thrown) {
    const error = toBlockwireError(thrown);
    process.stderr.write(`${error.code}: ${error.message}\n`);
    if (!(thrown instanceof Error && 'code' in thrown))
      log.error({ err: thrown }, 'the node could not start');
    await lifecycle.stop();
    process.exit(1);
  }
}

if (import.meta.main) await main();
