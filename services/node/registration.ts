/**
 * The node's line to the control plane: tells what it holds, carries out what the control plane commands. The data path
 * needs none of it: while the control plane is away the node serves on.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import {
  createNodesClient,
  nodesMethods,
  type UnaryOptions,
  unary,
} from '@blockwire/proto/control/client.ts';
import { toRpcError } from '@blockwire/proto/control/errors.ts';
import type { InstallEpoch, NodeCommand, NodesClient } from '@blockwire/proto/control/types.ts';
import { ControlSession } from '@blockwire/shared/control-session.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { InstallOrder } from './replication/admission.ts';
import type { ResyncOrder } from './resync/resyncs.ts';
import { REGION_SIZE_BYTES } from './store/region-table.ts';
import type { ReplicaStore } from './store/replica-store.ts';
import type { Volumes } from './volumes.ts';

const CALL_TIMEOUT_MS = 10_000;
const REPORT_RETRY_MS = 500;
const DAMAGE_MS_MIN = 60_000;

export interface RegistrationOptions {
  /** host:port of the control plane's gRPC. */
  readonly control: string;
  readonly nodeId: string;
  readonly nbdAddress: string;
  /** At which other nodes reach this one; null: at the same. */
  readonly peerAddress: string | null;
  readonly zone: string;
  readonly version: string;
  readonly store: ReplicaStore;
  readonly volumes: Volumes;
  /** The raw key that capabilities are verified with, at every registration. */
  readonly onCapabilityKey: (key: Uint8Array) => Promise<void>;
  readonly log: Logger;
}

function resyncOrder(order: ResyncOrder | null): ResyncOrder {
  if (order === null) throw new BlockwireError('BW_PROTOCOL', 'the command does not say where to copy from');
  return order;
}

function installOrder(message: InstallEpoch): InstallOrder {
  const { generation, epoch, joinedEpoch, lossEpoch } = message;
  const role = message.role === 'REPLICA_STATE_REBUILDING' ? 'rebuilding' : 'inSync';
  return { generation, epoch, role, joinedEpoch, lossEpoch };
}

export class Registration {
  /** Resolves at the first successful registration. */
  readonly registered: Promise<void>;
  readonly #options: RegistrationOptions;
  readonly #client: NodesClient;
  readonly #session: ControlSession<NodeCommand>;
  readonly #stop = new AbortController();
  /** When damage was told last, by volume and region. */
  readonly #damages = new Map<string, number>();

  constructor(options: RegistrationOptions) {
    this.#options = options;
    this.#client = createNodesClient(options.control);
    this.#session = new ControlSession<NodeCommand>({
      log: options.log,
      register: (signal) => this.#register(signal),
      heartbeat: (signal) => this.#heartbeat(signal),
      watch: () => this.#client.Watch({ nodeId: options.nodeId }),
      // Those of one volume wait for each other (volumes.ts).
      onCommand: (command) => this.#carryOut(command),
    });
    this.registered = this.#session.start();
  }

  /** Whether the last registration still stands. */
  get connected(): boolean {
    return this.#session.connected;
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#options.volumes.resyncs.stop();
    await this.#options.volumes.scrubs.stop();
    await this.#session.stop();
    this.#client.close();
  }

  /** A block does not match its checksum. Told once for each region and minute. */
  reportDamage(exportId: string, offset: number): void {
    // A snapshot is no replica that another one could repair.
    if (exportId.includes('@')) return;
    const region = Math.floor(offset / REGION_SIZE_BYTES);
    const key = `${exportId}/${region}`;
    const nowMs = performance.now();
    for (const [told, atMs] of this.#damages) if (nowMs - atMs > DAMAGE_MS_MIN) this.#damages.delete(told);
    if (this.#damages.has(key)) return;
    this.#damages.set(key, nowMs);
    const damage = { nodeId: this.#options.nodeId, volumeId: exportId, regions: [region] };
    void this.#report((options) => unary(this.#client, nodesMethods().ReportDamage, damage, options));
  }

  async #register(signal: AbortSignal): Promise<number> {
    const { nodeId, nbdAddress, zone, version, store, control, log } = this.#options;
    const peerAddress = this.#options.peerAddress ?? '';
    const replicas = [...store.replicas.values()].map(({ descriptor }) => ({
      volumeId: descriptor.volumeId,
      sizeBytes: descriptor.sizeBytes,
      generation: descriptor.generation,
      epoch: descriptor.epoch,
      unclean: descriptor.uncleanEpoch !== null,
    }));
    const capacityBytes = store.capacityBytes();
    const freeBytes = store.freeBytes();
    const request = { nodeId, nbdAddress, peerAddress, zone, version, capacityBytes, freeBytes, replicas };
    const options = { timeoutMs: CALL_TIMEOUT_MS, signal };
    const answer = await unary(this.#client, nodesMethods().Register, request, options);
    log.info({ control }, 'registered with the control plane');
    if (answer.capabilityKey.length > 0) await this.#options.onCapabilityKey(answer.capabilityKey);
    return answer.heartbeatIntervalMs;
  }

  async #heartbeat(signal: AbortSignal): Promise<void> {
    const { nodeId, store, volumes } = this.#options;
    const rebuilds = volumes.resyncs.progress();
    const request = { nodeId, capacityBytes: store.capacityBytes(), freeBytes: store.freeBytes(), rebuilds };
    await unary(this.#client, nodesMethods().Heartbeat, request, { timeoutMs: CALL_TIMEOUT_MS, signal });
  }

  async #carryOut(command: NodeCommand): Promise<void> {
    const { nodeId, log } = this.#options;
    const { commandId } = command;
    let result = { commandId, errorCode: '', errorMessage: '' };
    try {
      await this.#apply(command);
    } catch (thrown) {
      const error = toBlockwireError(thrown);
      log.warn({ command: command.action, code: error.code, reason: error.message }, 'a command failed');
      result = { commandId, errorCode: error.code, errorMessage: error.message };
    }
    try {
      await unary(this.#client, nodesMethods().Complete, { nodeId, result }, { timeoutMs: CALL_TIMEOUT_MS });
    } catch (error) {
      // The control plane gives the command again to the next watch; commands are safe to repeat.
      log.warn({ reason: toRpcError(error).message }, 'the outcome of a command could not be reported');
    }
  }

  /** Until the control plane has answered: it waits for it. */
  async #report(send: (options: UnaryOptions) => Promise<unknown>): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        await send({ timeoutMs: CALL_TIMEOUT_MS, signal });
        return;
      } catch {
        await sleep(REPORT_RETRY_MS, undefined, { signal }).catch(() => {});
      }
    }
  }

  async #apply(command: NodeCommand): Promise<void> {
    const { volumes, nodeId } = this.#options;
    switch (command.action) {
      case 'createReplica':
        return volumes.create(command.createReplica!);
      case 'deleteReplica':
        return volumes.delete(command.deleteReplica!.volumeId);
      case 'installEpoch':
        return volumes.installEpoch(command.installEpoch!.volumeId, installOrder(command.installEpoch!));
      case 'createSnapshot':
        return volumes.createSnapshot(command.createSnapshot!);
      case 'deleteSnapshot':
        return volumes.deleteSnapshot(command.deleteSnapshot!);
      case 'cloneReplica':
        return volumes.clone(command.cloneReplica!);
      case 'resizeReplica':
        return volumes.resize(command.resizeReplica!);
      case 'reconcile':
        return volumes.reconcile(resyncOrder(command.reconcile!.order));
      case 'rebuild': {
        const { order, sinceEpoch, joinedEpoch, bytesPerSecond } = command.rebuild!;
        const rebuild = { ...resyncOrder(order), sinceEpoch, joinedEpoch, bytesPerSecond };
        return volumes.rebuild(rebuild, (report) => {
          void this.#report((options) =>
            unary(this.#client, nodesMethods().ReportRebuild, { nodeId, ...report }, options),
          );
        });
      }
      case 'scrub': {
        const { order, bytesPerSecond } = command.scrub!;
        return volumes.scrub(resyncOrder(order), bytesPerSecond, (report) => {
          void this.#report((options) =>
            unary(this.#client, nodesMethods().ReportScrub, { nodeId, ...report }, options),
          );
        });
      }
      case 'repair':
        return volumes.repair(resyncOrder(command.repair!.order), command.repair!.regions);
      default:
        throw new BlockwireError('BW_PROTOCOL', 'a command that this version of the node does not know');
    }
  }
}
