/** A storage node and an agent as the control plane sees them: real gRPC, nothing behind it. */

import {
  agentsMethods,
  createAgentsClient,
  createNodesClient,
  nodesMethods,
  unary,
} from '@blockwire/proto/control/client.ts';
import type {
  AgentCommand,
  AttachedDeviceInput,
  AttachVolume,
  DeviceStatusInput,
  Membership,
  NodeCommand,
  Rebuild,
  RebuildProgressInput,
  RegisterNodeRequestInput,
  ReportReplicaLostRequestInput,
  ReportScrubRequestInput,
} from '@blockwire/proto/control/types.ts';
import type { Client, ClientReadableStream } from '@grpc/grpc-js';

const TIMEOUT_MS = 20_000;

/** How a fake answers a command: nothing for success, a code for failure, `never` for silence. */
export type Reaction = string | undefined | 'never';

/** Opens a watch and resolves when the control plane has accepted it. */
async function opened<Message>(
  stream: ClientReadableStream<Message>,
): Promise<ClientReadableStream<Message>> {
  await new Promise<void>((resolve, reject) => {
    stream.once('metadata', () => resolve());
    stream.once('error', reject);
  });
  // From now on an error is only the end of the stream.
  stream.on('error', () => {});
  return stream;
}

abstract class FakeMember<Message> {
  readonly id: string;
  readonly commands: Message[] = [];
  #stream: ClientReadableStream<Message> | null = null;

  constructor(id: string) {
    this.id = id;
  }

  protected async watch(stream: ClientReadableStream<Message>): Promise<void> {
    this.#stream = await opened(stream);
    this.#stream.on('data', (command: Message) => {
      this.commands.push(command);
      void this.handle(command);
    });
  }

  /** Cuts the watch, as a killed process would, and resolves when that is done here. */
  async disconnect(): Promise<void> {
    const stream = this.#stream;
    this.#stream = null;
    if (stream === null || stream.closed) return;
    const closed = new Promise((resolve) => stream.once('close', resolve));
    stream.cancel();
    await closed;
  }

  protected abstract handle(command: Message): Promise<void>;
}

export class FakeNode extends FakeMember<NodeCommand> {
  /** Replicas it holds, by volume. */
  readonly replicas = new Map<string, { sizeBytes: number; generation: number; epoch: number }>();
  /** `VOLUME@SNAPSHOT` */
  readonly snapshots = new Set<string>();
  react: (command: NodeCommand) => Reaction = () => undefined;
  readonly registration: RegisterNodeRequestInput;
  /** As the last registration answered it. */
  capabilityKey: Uint8Array = new Uint8Array();
  #client: ReturnType<typeof createNodesClient> | null = null;

  constructor(id: string, registration: Partial<RegisterNodeRequestInput> = {}) {
    super(id);
    const capacityBytes = 2 ** 30;
    this.registration = {
      nodeId: id,
      nbdAddress: `10.0.0.1:${10809 + Number(id.at(-1))}`,
      peerAddress: `10.9.0.1:${10809 + Number(id.at(-1))}`,
      version: '0.1.0',
      capacityBytes,
      freeBytes: capacityBytes,
      ...registration,
    };
  }

  async connect(grpc: string): Promise<void> {
    this.#client?.close();
    this.#client = createNodesClient(grpc);
    const replicas = [...this.replicas].map(([volumeId, replica]) => ({ volumeId, ...replica }));
    const request = { ...this.registration, replicas };
    const answer = await unary(this.#client, nodesMethods().Register, request, { timeoutMs: TIMEOUT_MS });
    this.capabilityKey = answer.capabilityKey;
    await this.watch(this.#client.watch({ nodeId: this.id }));
  }

  async close(): Promise<void> {
    await this.disconnect();
    this.#client?.close();
  }

  async heartbeat(rebuilds: RebuildProgressInput[]): Promise<void> {
    const { capacityBytes = 0, freeBytes = 0 } = this.registration;
    const request = { nodeId: this.id, capacityBytes, freeBytes, rebuilds };
    await unary(this.#connected(), nodesMethods().Heartbeat, request, { timeoutMs: TIMEOUT_MS });
  }

  /** Reports the end of the rebuild that was ordered last. */
  async endRebuild(volumeId: string, error = ''): Promise<void> {
    const ordered = this.rebuildsOf(volumeId).at(-1);
    const { joinedEpoch, order } = ordered!;
    const request = { nodeId: this.id, volumeId, joinedEpoch, sourceNodeId: order!.sourceNodeId, error };
    await unary(this.#connected(), nodesMethods().ReportRebuild, request, { timeoutMs: TIMEOUT_MS });
  }

  async reportScrub(report: Omit<ReportScrubRequestInput, 'nodeId'>): Promise<void> {
    const request = { nodeId: this.id, ...report };
    await unary(this.#connected(), nodesMethods().ReportScrub, request, { timeoutMs: TIMEOUT_MS });
  }

  async reportDamage(volumeId: string, regions: number[]): Promise<void> {
    const request = { nodeId: this.id, volumeId, regions };
    await unary(this.#connected(), nodesMethods().ReportDamage, request, { timeoutMs: TIMEOUT_MS });
  }

  rebuildsOf(volumeId: string): Rebuild[] {
    return this.commands.flatMap(({ rebuild }) => (rebuild?.order?.volumeId === volumeId ? [rebuild] : []));
  }

  #connected(): ReturnType<typeof createNodesClient> {
    if (this.#client === null) throw new Error('connect first');
    return this.#client;
  }

  commandsOf(action: NonNullable<NodeCommand['action']>): NodeCommand[] {
    return this.commands.filter((command) => command.action === action);
  }

  protected async handle(command: NodeCommand): Promise<void> {
    const reaction = this.react(command);
    if (reaction === 'never') return;
    if (reaction === undefined) this.#apply(command);
    await complete(this.#client, nodesMethods().Complete, {
      nodeId: this.id,
      result: resultOf(command.commandId, reaction),
    });
  }

  #apply(command: NodeCommand): void {
    const { createReplica, deleteReplica, installEpoch, resizeReplica } = command;
    const { createSnapshot, deleteSnapshot, cloneReplica } = command;
    if (createSnapshot) this.snapshots.add(`${createSnapshot.volumeId}@${createSnapshot.snapshot}`);
    if (deleteSnapshot) this.snapshots.delete(`${deleteSnapshot.volumeId}@${deleteSnapshot.snapshot}`);
    if (cloneReplica) {
      const { volumeId, sourceVolumeId, generation, epoch } = cloneReplica;
      const sizeBytes = this.replicas.get(sourceVolumeId)?.sizeBytes ?? 0;
      this.replicas.set(volumeId, { sizeBytes, generation, epoch });
    }
    if (createReplica) {
      const { volumeId, sizeBytes, generation, epoch } = createReplica;
      this.replicas.set(volumeId, { sizeBytes, generation, epoch });
    }
    if (deleteReplica) this.replicas.delete(deleteReplica.volumeId);
    if (installEpoch) {
      const { volumeId, generation, epoch } = installEpoch;
      const replica = this.replicas.get(volumeId);
      if (replica) this.replicas.set(volumeId, { ...replica, generation, epoch });
    }
    if (resizeReplica) {
      const { volumeId, sizeBytes } = resizeReplica;
      const replica = this.replicas.get(volumeId);
      if (replica) this.replicas.set(volumeId, { ...replica, sizeBytes });
    }
  }
}

export class FakeAgent extends FakeMember<AgentCommand> {
  readonly devices = new Map<string, AttachedDeviceInput>();
  react: (command: AgentCommand) => Reaction = () => undefined;
  #client: ReturnType<typeof createAgentsClient> | null = null;

  async connect(grpc: string): Promise<void> {
    this.#client?.close();
    this.#client = createAgentsClient(grpc);
    await unary(
      this.#client,
      agentsMethods().Register,
      {
        agentId: this.id,
        host: 'host-1',
        version: '0.1.0',
        datapaths: ['fused', 'copy'],
        devices: [...this.devices.values()],
      },
      { timeoutMs: TIMEOUT_MS },
    );
    await this.watch(this.#client.watch({ agentId: this.id }));
  }

  async close(): Promise<void> {
    await this.disconnect();
    this.#client?.close();
  }

  resume(attachmentId: string): Promise<AttachVolume> {
    if (this.#client === null) throw new Error('connect first');
    const request = { agentId: this.id, attachmentId };
    return unary(this.#client, agentsMethods().ResumeAttachment, request, { timeoutMs: TIMEOUT_MS });
  }

  async heartbeat(devices: DeviceStatusInput[]): Promise<void> {
    if (this.#client === null) throw new Error('connect first');
    const request = { agentId: this.id, devices };
    await unary(this.#client, agentsMethods().Heartbeat, request, { timeoutMs: TIMEOUT_MS });
  }

  reportReplicaLost(report: Omit<ReportReplicaLostRequestInput, 'agentId'>): Promise<Membership> {
    if (this.#client === null) throw new Error('connect first');
    const request = { agentId: this.id, ...report };
    return unary(this.#client, agentsMethods().ReportReplicaLost, request, { timeoutMs: TIMEOUT_MS });
  }

  protected async handle(command: AgentCommand): Promise<void> {
    const reaction = this.react(command);
    if (reaction === 'never') return;
    const device = reaction === undefined ? this.#apply(command) : null;
    await complete(this.#client, agentsMethods().Complete, {
      agentId: this.id,
      result: resultOf(command.commandId, reaction),
      device,
    });
  }

  #apply({ attach, detach }: AgentCommand): AttachedDeviceInput | null {
    if (detach) this.devices.delete(detach.attachmentId);
    if (!attach) return null;
    const device = {
      attachmentId: attach.attachmentId,
      volumeId: attach.membership?.volumeId ?? '',
      device: `/dev/ublkb${this.devices.size}`,
      datapath: attach.datapath === 'auto' ? 'fused' : attach.datapath,
      generation: attach.membership?.generation ?? 0,
    };
    this.devices.set(attach.attachmentId, device);
    return device;
  }
}

function resultOf(commandId: string, code: string | undefined) {
  return { commandId, errorCode: code ?? '', errorMessage: code === undefined ? '' : 'the fake says so' };
}

/** Completes a command, unless the control plane went away meanwhile. */
async function complete<RequestInput, ResponseInput, Request, Response>(
  client: Client | null,
  method: Parameters<typeof unary<RequestInput, ResponseInput, Request, Response>>[1],
  request: RequestInput,
): Promise<void> {
  if (client === null) return;
  await unary(client, method, request, { timeoutMs: TIMEOUT_MS }).catch(() => {});
}
