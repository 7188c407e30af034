/**
 * The node's line to the control plane: registers, keeps the heartbeat, carries out what the watch delivers. The data
 * path needs none of it: while the control plane is away the node serves on and tries again, for ever.
 *
 *   register ──▶ watch + heartbeats ──▶ (either fails) ──▶ back off ──▶ register ...
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { createNodesClient, nodesMethods, unary } from '@blockwire/proto/control/client.ts';
import { RpcError, toRpcError } from '@blockwire/proto/control/errors.ts';
import type { NodeCommand, NodesClient } from '@blockwire/proto/control/types.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { ReplicaStore } from './store/replica-store.ts';
import type { Volumes } from './volumes.ts';

const CALL_TIMEOUT_MS = 10_000;
const BACKOFF_MS_MIN = 200;
const BACKOFF_MS_MAX = 5_000;
const HEARTBEAT_MS_MIN = 100;

export interface RegistrationOptions {
  /** host:port of the control plane's gRPC. */
  readonly control: string;
  readonly nodeId: string;
  readonly nbdAddress: string;
  readonly zone: string;
  readonly version: string;
  readonly store: ReplicaStore;
  readonly volumes: Volumes;
  readonly log: Logger;
}

export class Registration {
  readonly #options: RegistrationOptions;
  readonly #client: NodesClient;
  readonly #abort = new AbortController();
  readonly #ended: Promise<void>;
  #connected = false;
  #complaint: string | null = null;
  /** Commands run one after the other, also across reconnections. */
  #commands: Promise<void> = Promise.resolve();
  readonly #firstContact = Promise.withResolvers<void>();

  constructor(options: RegistrationOptions) {
    this.#options = options;
    this.#client = createNodesClient(options.control);
    this.#ended = this.#run();
  }

  /** Whether the last call reached the control plane. */
  get connected(): boolean {
    return this.#connected;
  }

  /** Resolves at the first successful registration. */
  get registered(): Promise<void> {
    return this.#firstContact.promise;
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#ended;
    this.#client.close();
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    let backoffMs = BACKOFF_MS_MIN;
    while (!signal.aborted) {
      try {
        const heartbeatMs = await this.#register();
        backoffMs = BACKOFF_MS_MIN;
        await this.#serve(Math.max(heartbeatMs, HEARTBEAT_MS_MIN));
      } catch (error) {
        if (signal.aborted) break;
        this.#lost(toRpcError(error));
      }
      await sleep(backoffMs, undefined, { signal }).catch(() => undefined);
      backoffMs = Math.min(backoffMs * 2, BACKOFF_MS_MAX);
    }
  }

  async #register(): Promise<number> {
    const { nodeId, nbdAddress, zone, version, store, control, log } = this.#options;
    const replicas = [...store.replicas.values()].map(({ descriptor }) => ({
      volumeId: descriptor.volumeId,
      sizeBytes: descriptor.sizeBytes,
      generation: descriptor.generation,
      epoch: descriptor.epoch,
    }));
    const capacityBytes = store.capacityBytes();
    const freeBytes = store.freeBytes();
    const request = { nodeId, nbdAddress, zone, version, capacityBytes, freeBytes, replicas };
    const answer = await unary(this.#client, nodesMethods().Register, request, this.#callOptions());
    if (!this.#connected) log.info({ control }, 'registered with the control plane');
    this.#connected = true;
    this.#complaint = null;
    this.#firstContact.resolve();
    return answer.heartbeatIntervalMs;
  }

  /** Watches and sends heartbeats until one of them fails; rejects with that failure. */
  async #serve(heartbeatMs: number): Promise<void> {
    const { nodeId, store } = this.#options;
    const failed = Promise.withResolvers<never>();
    const watch = this.#client.Watch({ nodeId });
    watch.on('data', (command: NodeCommand) => this.#enqueue(command));
    watch.on('error', (error: Error) => failed.reject(error));
    watch.on('end', () => failed.reject(new RpcError(null, 14, 'the control plane ended the watch')));
    const beats = new AbortController();
    const signal = AbortSignal.any([this.#abort.signal, beats.signal]);
    const beat = async (): Promise<void> => {
      while (!signal.aborted) {
        await sleep(heartbeatMs, undefined, { signal });
        const request = { nodeId, capacityBytes: store.capacityBytes(), freeBytes: store.freeBytes() };
        await unary(this.#client, nodesMethods().Heartbeat, request, this.#callOptions());
      }
    };
    beat().catch((error: unknown) => failed.reject(error));
    try {
      await failed.promise;
    } finally {
      beats.abort();
      watch.cancel();
    }
  }

  #enqueue(command: NodeCommand): void {
    this.#commands = this.#commands.then(() => this.#carryOut(command));
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
      await unary(this.#client, nodesMethods().Complete, { nodeId, result }, this.#callOptions());
    } catch (error) {
      // The control plane gives the command again to the next watch; commands are safe to repeat.
      log.warn({ reason: toRpcError(error).message }, 'the outcome of a command could not be reported');
    }
  }

  async #apply(command: NodeCommand): Promise<void> {
    const { volumes } = this.#options;
    switch (command.action) {
      case 'createReplica':
        return volumes.create(command.createReplica!);
      case 'deleteReplica':
        return volumes.delete(command.deleteReplica!.volumeId);
      case 'installEpoch':
        return volumes.installEpoch(command.installEpoch!);
      default:
        throw new BlockwireError('BW_PROTOCOL', 'a command that this version of the node does not know');
    }
  }

  /** Logs once per change: a control plane that is away for a night must not fill the disk. */
  #lost(error: RpcError): void {
    const { log, control } = this.#options;
    this.#connected = false;
    if (this.#complaint === error.message) return;
    this.#complaint = error.message;
    log.warn({ control, reason: error.message }, 'no line to the control plane; trying again');
  }

  #callOptions(): { timeoutMs: number; signal: AbortSignal } {
    return { timeoutMs: CALL_TIMEOUT_MS, signal: this.#abort.signal };
  }
}
