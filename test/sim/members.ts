/** What members of a cluster ask of the control plane and are asked by it, over a network that loses messages. */
import type {
  AgentAction,
  Context,
  DeviceReport,
  Membership,
  NodeAction,
} from '@blockwire/control/domain/context.ts';
import {
  type RebuildReport,
  type ReplicaLostReport,
  replicaLost,
} from '@blockwire/control/domain/membership.ts';
import { type ReplicaRecord, volumes } from '@blockwire/control/domain/records.ts';
import { registerAgent, registerNode } from '@blockwire/control/domain/registry.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { CONTROL, type ControlProcess } from './control-process.ts';
import type { Mutation } from './mutations.ts';
import type { Network, Process } from './network.ts';
import type { RepairOrder } from './repairs.ts';
import type { World } from './world.ts';

export const VOLUME_ID = 'vol-000000000001';
const RPC_MS_MAX = 600;

interface NodeMember {
  readonly kind: 'node';
  /** Null: it has none. */
  readonly replica: () => {
    readonly generation: number;
    readonly epoch: number;
    readonly unclean: boolean;
  } | null;
}

interface AgentMember {
  readonly kind: 'agent';
  readonly devices: () => DeviceReport[];
}

export type Member = (NodeMember | AgentMember) & {
  readonly id: string;
  readonly process: Process;
  readonly heartbeatMs: number;
};

/** How orders reach them. */
export interface MembersHost {
  readonly world: World;
  readonly network: Network;
  readonly mutation: Mutation;
  nodeCommand(id: string, process: Process, commandId: string, action: NodeAction): void;
  nodeRepair(id: string, process: Process, order: RepairOrder): void;
  agentCommand(id: string, process: Process, commandId: string, action: AgentAction): void;
}

export class Members {
  readonly #host: MembersHost;
  /** The process of the control plane that answers now; null: none. */
  readonly #answering: () => ControlProcess | null;

  constructor(host: MembersHost, answering: () => ControlProcess | null) {
    this.#host = host;
    this.#answering = answering;
  }

  /** A member registers, watches and sends heartbeats for as long as its process lives. */
  join(member: Member): void {
    const { process, heartbeatMs } = member;
    const { network } = this.#host;
    let watch: { daemon: ControlProcess; close: () => void } | null = null;
    let heardAt = 0;
    const register = (): void => {
      heardAt = this.#host.world.now;
      this.#rpc(
        process,
        async (daemon) => {
          await this.#register(daemon, member);
          const close = this.#openWatch(daemon, member, () => {
            watch = null;
          });
          return { daemon, close };
        },
        (answer) => {
          if (isError(answer))
            this.#host.world.note(50, 0, () => `${member.id} cannot register: ${answer.message}`);
          else watch = answer;
        },
      );
    };
    register();
    process.every(heartbeatMs, () => {
      const { now } = this.#host.world;
      if (watch === null || now - heardAt > RPC_MS_MAX) {
        if (now - heardAt > RPC_MS_MAX / 2) register();
        return;
      }
      const open = watch;
      this.#rpc(
        process,
        async (daemon) => {
          const { nodeFleet, agentFleet } = daemon.context;
          const fleet = member.kind === 'node' ? nodeFleet : agentFleet;
          // A stream does not outlive its process, and its end is not lost.
          if (daemon !== open.daemon || !fleet.isOnline(member.id)) {
            throw new BlockwireError('BW_NODE_NOT_FOUND', 'the watch is broken');
          }
          fleet.heartbeat(member.id);
        },
        (answer) => {
          if (isError(answer)) watch = null;
          else heardAt = this.#host.world.now;
        },
      );
    });
    process.onKill(() => {
      const open = watch;
      if (open === null || this.#host.world.random.oneIn(4)) return;
      network.message(member.id, CONTROL, () =>
        open.daemon.process.enter(() => {
          this.#host.world.touch();
          open.close();
        }),
      );
    });
  }

  completeNode(process: Process, id: string, commandId: string, error: BlockwireError | null): void {
    this.#rpc(process, async ({ context }) => {
      context.nodeFleet.complete(id, commandId, error ?? { result: undefined });
    });
  }

  completeAgent(
    process: Process,
    id: string,
    commandId: string,
    outcome: BlockwireError | { readonly result: DeviceReport | null },
  ): void {
    this.#rpc(process, async ({ context }) => context.agentFleet.complete(id, commandId, outcome));
  }

  rebuildEnded(process: Process, report: RebuildReport, answered: (isAnswered: boolean) => void): void {
    this.#rpc(
      process,
      ({ rebuilder }) => rebuilder.ended(report),
      (answer) => answered(!isError(answer)),
    );
  }

  /** A node has found damage: it is told whom to repair it from, if there is somebody. */
  reportDamage(
    process: Process,
    report: { readonly nodeId: string; readonly regions: readonly number[] },
  ): void {
    const { nodeId, regions } = report;
    this.#rpc(process, async ({ context, process: own }) => {
      const volume = (await volumes.get(context.store, VOLUME_ID))!.value;
      const isAny = this.#host.mutation === 'repair-from-any';
      const isUsable = ({ nodeId: id, state }: ReplicaRecord): boolean =>
        id !== nodeId && context.nodeFleet.isOnline(id) && (state === 'inSync' || isAny);
      const isInSync = volume.replicas.some((r) => r.nodeId === nodeId && r.state === 'inSync');
      // Stale ones first, where nobody looks at states.
      const source = volume.replicas.filter(isUsable).sort((a, b) => (a.state > b.state ? -1 : 1))[0];
      if (source === undefined || !isInSync) return;
      const { generation, epoch } = volume;
      const order = { generation, epoch, sourceNodeId: source.nodeId, regions };
      this.#host.network.message(own.name, nodeId, () =>
        process.enter(() => this.#host.nodeRepair(nodeId, process, order)),
      );
    });
  }

  replicaLost(
    process: Process,
    report: ReplicaLostReport,
    answered: (answer: Membership | BlockwireError) => void,
  ): void {
    this.#rpc(
      process,
      ({ context }) =>
        replicaLost(this.#host.mutation === 'answer-before-install' ? hasty(context) : context, report),
      answered,
    );
  }

  /** @param answered runs once: with a BW_TIMEOUT when no answer comes */
  #rpc<T>(
    from: Process,
    run: (daemon: ControlProcess) => Promise<T>,
    answered: (answer: T | BlockwireError) => void = () => {},
  ): void {
    const { network, world } = this.#host;
    let isAnswered = false;
    const answer = (value: T | BlockwireError): void => {
      if (isAnswered) return;
      isAnswered = true;
      answered(value);
    };
    network.message(from.name, CONTROL, () => {
      const daemon = this.#answering();
      daemon?.process.enter(() => {
        world.touch();
        const reply = (value: T | BlockwireError): void =>
          daemon.process.enter(() =>
            network.message(CONTROL, from.name, () => from.enter(() => answer(value))),
          );
        run(daemon).then(reply, (error: unknown) => reply(toBlockwireError(error)));
      });
    });
    from.after(RPC_MS_MAX * 4, () => answer(toBlockwireError(new Error('no answer'), 'BW_TIMEOUT')));
  }

  async #register({ context, attachments, rebuilder }: ControlProcess, member: Member): Promise<void> {
    const { id } = member;
    if (member.kind === 'node') {
      const node = {
        ...{ id, nbdAddress: `${id}:10809`, zone: '', version: '0' },
        ...{ capacityBytes: 2 ** 40, freeBytes: 2 ** 40 },
      };
      rebuilder.nodeRestarted(id);
      const replica = member.replica();
      await registerNode(context, node, replica === null ? [] : [{ volumeId: VOLUME_ID, ...replica }]);
    } else {
      const devices = member.devices();
      await registerAgent(context, { id, host: id, version: '0', datapaths: ['copy'] });
      await attachments.reconcile(id, devices);
    }
  }

  #openWatch({ context, process }: ControlProcess, member: Member, ended: () => void): () => void {
    const { network } = this.#host;
    const { id } = member;
    const send = (run: () => void): void =>
      process.enter(() => network.message(CONTROL, id, () => member.process.enter(run)));
    if (member.kind === 'node') {
      return context.nodeFleet.openWatch(id, {
        deliver: (commandId, action) =>
          send(() => this.#host.nodeCommand(id, member.process, commandId, action)),
        end: () => send(ended),
      });
    }
    return context.agentFleet.openWatch(id, {
      deliver: (commandId, action) =>
        send(() => this.#host.agentCommand(id, member.process, commandId, action)),
      end: () => send(ended),
    });
  }
}

/** A context that does not wait for nodes to install anything, for a mutation. */
function hasty(context: Context): Context {
  const { nodeFleet } = context;
  const hurried = {
    waitOnline: () => Promise.resolve(true),
    isOnline: () => true,
    dispatch: (...parameters: Parameters<typeof nodeFleet.dispatch>) => {
      nodeFleet.dispatch(...parameters).catch(() => {});
      return Promise.resolve();
    },
  };
  return { ...context, nodeFleet: hurried as unknown as Context['nodeFleet'] };
}

export function isError(value: unknown): value is BlockwireError {
  return value instanceof Error;
}
