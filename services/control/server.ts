/** One control plane, put together: from the store up to the two servers, and down again. */
import { randomBytes } from 'node:crypto';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Lifecycle } from '@blockwire/shared/lifecycle.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { createRegistry } from '@blockwire/shared/observability.ts';
import { Attachments } from './domain/attachments.ts';
import { type ExportNames, loadCapabilities } from './domain/capabilities.ts';
import { type Context, DEFAULT_POLICY, DEFAULT_TIMING, type Policy, type Timing } from './domain/context.ts';
import { Damages } from './domain/damages.ts';
import { type ControlEvent, ControlEvents, EventStore } from './domain/events.ts';
import { Fleet } from './domain/fleet.ts';
import { Idempotency } from './domain/idempotency.ts';
import { Rebuilder } from './domain/rebuilds.ts';
import { recover } from './domain/recovery.ts';
import { Scrubber } from './domain/scrubs.ts';
import { Snapshots } from './domain/snapshots.ts';
import { TombstoneCollector } from './domain/tombstones.ts';
import { Volumes } from './domain/volumes.ts';
import { createHttpMetrics, createStateMetrics } from './metrics.ts';
import { buildApp, type RestApp } from './routes/app.ts';
import { startRpcServer } from './rpc/server.ts';
import type { MetadataStore } from './store/store.ts';

const TICKS_PER_HEARTBEAT = 4;
const SWEEP_INTERVAL_MS = 30_000;
const EXPIRE_INTERVAL_MS = 3_600_000;

export interface ControlOptions {
  readonly host: string;
  /** 0 takes any free port. */
  readonly restPort: number;
  readonly grpcPort: number;
  readonly store: MetadataStore;
  readonly log: Logger;
  /** Everything started is registered here, to be stopped in reverse order. */
  readonly lifecycle: Lifecycle;
  readonly timing?: Partial<Timing>;
  readonly policy?: Partial<Policy>;
}

export interface ControlPlane {
  /** http://host:port */
  readonly rest: string;
  /** host:port */
  readonly grpc: string;
  readonly app: RestApp;
  readonly events: ControlEvents;
}

/** Starts serving. Throws BW_CONFLICT when a port is taken; what was started is then in the lifecycle. */
export async function startControl(options: ControlOptions): Promise<ControlPlane> {
  const { host, restPort, grpcPort, store, log, lifecycle } = options;
  lifecycle.onStop('metadata store', () => store.close());

  const capabilities = await loadCapabilities(store, Date.now);
  const context = createContext(options, capabilities);
  const tombstones = new TombstoneCollector(context);
  const volumes = new Volumes(context, tombstones);
  const attachments = new Attachments(context, tombstones);
  const rebuilder = new Rebuilder(context, tombstones);
  const snapshots = new Snapshots(context);
  const scrubber = new Scrubber(context);
  const damages = new Damages(context);
  const idempotency = new Idempotency(context);
  context.events.on('change', (event) => {
    logEvent(log, event);
    if (event.type === 'node.online') void tombstones.collectNode(event.node);
    if (event.type === 'node.online') void snapshots.sweep();
    if (event.type === 'agent.online') void tombstones.collectAgent(event.agent);
    if (event.type === 'node.online') damages.memberCame();
    if (event.type === 'node.online' || event.type === 'agent.online') rebuilder.memberCame();
  });
  await recover({ volumes, attachments, snapshots });
  lifecycle.onStop('deletions', () => tombstones.settle());

  const rpc = await startRpcServer({
    ...{ context, attachments, rebuilder, scrubber, damages, host },
    ...{ capabilityKey: capabilities.publicKey, port: grpcPort },
  });
  lifecycle.onStop('gRPC', () => rpc.stop());

  const parts = { context, volumes, attachments, rebuilder, snapshots, scrubber, idempotency };
  const registry = createRegistry();
  const httpMetrics = createHttpMetrics(registry);
  createStateMetrics(registry, parts);
  const app = await buildApp({ ...parts, registry, httpMetrics });
  lifecycle.onStop('REST', () => app.close());
  // Stopped before REST: requests that wait for a node or an agent end now, with BW_SHUTTING_DOWN.
  lifecycle.onStop('commands', () => {
    context.nodeFleet.close();
    context.agentFleet.close();
  });
  const rest = await app.listen({ host, port: restPort }).catch((error: Error) => {
    throw new BlockwireError('BW_CONFLICT', `REST cannot listen on ${host}:${restPort}: ${error.message}`);
  });

  const every = (name: string, intervalMs: number, run: () => void): void => {
    const timer = setInterval(run, intervalMs);
    lifecycle.onStop(name, () => clearInterval(timer));
  };
  every('liveness', context.timing.heartbeatIntervalMs / TICKS_PER_HEARTBEAT, () => {
    context.nodeFleet.tick();
    context.agentFleet.tick();
  });
  every('sweep', SWEEP_INTERVAL_MS, () => {
    void tombstones.sweep();
    void snapshots.sweep();
  });
  every('rebuilds', context.timing.rebuildSweepMs, () => {
    void rebuilder.sweep();
    void scrubber.sweep();
    void damages.sweep();
  });
  every('expiry', EXPIRE_INTERVAL_MS, () => {
    idempotency.expire().catch((error: unknown) => log.error({ err: error }, 'idempotency keys not expired'));
  });
  return { rest, grpc: rpc.address, app, events: context.events };
}

/** What somebody may have to see to. */
const WARNINGS: readonly ControlEvent['type'][] = [
  ...(['attachment.lost', 'replica.stale', 'replica.damaged', 'replica.lossy', 'volume.adopted'] as const),
];

function logEvent(log: Logger, event: ControlEvent): void {
  if (WARNINGS.includes(event.type)) log.warn(event, event.type);
  else log.info(event, event.type);
}

function createContext(options: ControlOptions, exportNames: ExportNames): Context {
  const { log, timing: overrides, policy } = options;
  const timing: Timing = { ...DEFAULT_TIMING, ...overrides };
  const events = new ControlEvents();
  const now = (): number => Date.now();
  const store = new EventStore(options.store, { events, log, now });
  const newId = (prefix: string): string => `${prefix}-${randomBytes(6).toString('hex')}`;
  const shared = {
    heartbeatIntervalMs: timing.heartbeatIntervalMs,
    missedMax: timing.missedMax,
    reconnectGraceMs: timing.reconnectGraceMs,
    now,
    newCommandId: () => newId('cmd'),
  };
  return {
    store,
    exportNames,
    events,
    log,
    timing,
    policy: { ...DEFAULT_POLICY, ...policy },
    now,
    newId,
    nodeFleet: new Fleet({
      ...shared,
      noun: 'node',
      offlineCode: 'BW_NODE_OFFLINE',
      unknownCode: 'BW_NODE_NOT_FOUND',
      onChange: (node, online) => store.note({ type: online ? 'node.online' : 'node.offline', node }),
    }),
    agentFleet: new Fleet({
      ...shared,
      noun: 'agent',
      offlineCode: 'BW_AGENT_OFFLINE',
      unknownCode: 'BW_AGENT_NOT_FOUND',
      onChange: (agent, online) => store.note({ type: online ? 'agent.online' : 'agent.offline', agent }),
    }),
  };
}
