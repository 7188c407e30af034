/** A control plane that does what a test says: any number of nodes, commands by hand, everything they report kept. */
import assert from 'node:assert/strict';
import { serviceError } from '@blockwire/proto/control/errors.ts';
import { addNodesService } from '@blockwire/proto/control/service.ts';
import type {
  NodeCommandInput,
  NodeCommandResult,
  NodeHeartbeat,
  NodesHandlers,
  RegisterNodeRequest,
  ReportDamageRequest,
  ReportRebuildRequest,
  ReportScrubRequest,
} from '@blockwire/proto/control/types.ts';
import { Server, ServerCredentials, type ServerWritableStream, status } from '@grpc/grpc-js';
import { eventually } from './node-process.ts';

type Watch = Pick<ServerWritableStream<unknown, NodeCommandInput>, 'write'>;

export class ControlPlane {
  readonly registered: RegisterNodeRequest[] = [];
  readonly beats: NodeHeartbeat[] = [];
  readonly results: NodeCommandResult[] = [];
  readonly rebuilds: ReportRebuildRequest[] = [];
  readonly damages: ReportDamageRequest[] = [];
  readonly scrubs: ReportScrubRequest[] = [];
  /** What nodes are told to verify capabilities with. */
  capabilityKey: Uint8Array = new Uint8Array(0);
  port = 0;
  refuseHeartbeats = false;
  #server: Server | null = null;
  /** By node. */
  readonly #watches = new Map<string, Watch>();
  #commands = 0;

  async start(): Promise<void> {
    const server = new Server();
    const handlers: NodesHandlers = {
      Register: (call, callback) => {
        this.registered.push(call.request);
        callback(null, { heartbeatIntervalMs: 100, capabilityKey: Buffer.from(this.capabilityKey) });
      },
      Heartbeat: (call, callback) => {
        this.beats.push(call.request);
        if (this.refuseHeartbeats) {
          this.refuseHeartbeats = false;
          callback(serviceError('BW_NODE_NOT_FOUND', status.NOT_FOUND, 'register first'));
        } else callback(null, {});
      },
      Watch: (call) => void this.#watches.set(call.request.nodeId, call),
      Complete: (call, callback) => {
        this.results.push(call.request);
        callback(null, {});
      },
      ReportRebuild: (call, callback) => {
        this.rebuilds.push(call.request);
        callback(null, {});
      },
      ReportDamage: (call, callback) => {
        this.damages.push(call.request);
        callback(null, {});
      },
      ReportScrub: (call, callback) => {
        this.scrubs.push(call.request);
        callback(null, {});
      },
    };
    addNodesService(server, handlers);
    this.port = await new Promise<number>((resolve, reject) =>
      server.bindAsync(`127.0.0.1:${this.port}`, ServerCredentials.createInsecure(), (error, port) =>
        error ? reject(error) : resolve(port),
      ),
    );
    this.#server = server;
  }

  stop(): void {
    this.#server?.forceShutdown();
    this.#server = null;
    this.#watches.clear();
  }

  /** The node is gone: the next command waits for its next watch. */
  forget(nodeId: string): void {
    this.#watches.delete(nodeId);
  }

  /** Sends a command to the node's newest watch; resolves with its error code. */
  async command(command: NodeCommandInput, nodeId = 'node-1'): Promise<string> {
    const commandId = `command-${++this.#commands}`;
    await eventually('a watch', () => this.#watches.has(nodeId));
    this.#watches.get(nodeId)!.write({ commandId, ...command });
    const isOutcome = ({ result }: NodeCommandResult): boolean => result?.commandId === commandId;
    await eventually('an outcome', () => this.results.some(isOutcome));
    const outcome = this.results.find(isOutcome)!;
    assert.equal(outcome.nodeId, nodeId);
    return outcome.result!.errorCode;
  }
}
