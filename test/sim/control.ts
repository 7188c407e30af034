/** The control plane with its real domain: one process after the other on one store, and the members' side of the conversation. */
import { Attachments } from '@blockwire/control/domain/attachments.ts';
import type {
  AgentAction,
  Context,
  DeviceReport,
  Membership,
  NodeAction,
  Policy,
  Timing,
} from '@blockwire/control/domain/context.ts';
import { DEFAULT_POLICY, DEFAULT_TIMING } from '@blockwire/control/domain/context.ts';
import { ControlEvents } from '@blockwire/control/domain/events.ts';
import { Fleet } from '@blockwire/control/domain/fleet.ts';
import {
  type RebuildReport,
  type ReplicaLostReport,
  replicaLost,
} from '@blockwire/control/domain/membership.ts';
import { Rebuilder } from '@blockwire/control/domain/rebuilds.ts';
import {
  DEFAULT_DEVICE_OPTIONS,
  type ReplicaRecord,
  type VolumeRecord,
  volumes,
} from '@blockwire/control/domain/records.ts';
import { registerAgent, registerNode, setDraining } from '@blockwire/control/domain/registry.ts';
import { TombstoneCollector } from '@blockwire/control/domain/tombstones.ts';
import { MemoryStore } from '@blockwire/control/store/memory.ts';
import type { Change, CommitResult, MetadataStore } from '@blockwire/control/store/store.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { Mutation } from './mutations.ts';
import { type Network, Process } from './network.ts';
import type { RepairOrder } from './repairs.ts';
import type { World } from './world.ts';

export const CONTROL = 'control';
export const VOLUME_ID = 'vol-000000000001';

const TIMING: Timing = {
  ...DEFAULT_TIMING,
  ...{ heartbeatIntervalMs: 200, missedMax: 3, reconnectGraceMs: 300, installEpochMs: 400, attachMs: 3000 },
  ...{ detachMs: 1500, reconcileMs: 4000, membershipMs: 1500, deleteReplicaMs: 1000, createReplicaMs: 1000 },
  ...{ resizeMs: 600, pauseMsMin: 100, pauseMsMax: 800 },
};
const POLICY: Policy = { ...DEFAULT_POLICY, replaceAfterMs: 900 };
const COMMIT_MS = 0.5;
const SWEEP_MS = 150;
const RPC_MS_MAX = 600;
/** How long one that was replaced still acts. */
const SECOND_LIFE_MS = 2000;

const SILENT = { info() {}, warn() {}, error() {}, debug() {} } as unknown as Logger;

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

export interface ControlHost {
  readonly world: World;
  readonly network: Network;
  readonly mutation: Mutation;
  /** A volume's record was committed. */
  onVolume(volume: VolumeRecord): void;
  nodeCommand(id: string, process: Process, commandId: string, action: NodeAction): void;
  nodeRepair(id: string, process: Process, order: RepairOrder): void;
  agentCommand(id: string, process: Process, commandId: string, action: AgentAction): void;
}

/** One process of the control plane. */
class Daemon {
  readonly process: Process;
  readonly context: Context;
  readonly attachments: Attachments;
  readonly rebuilder: Rebuilder;

  constructor(host: ControlHost, store: MetadataStore, newId: (prefix: string) => string) {
    const { world, mutation } = host;
    this.process = new Process(world, CONTROL);
    const { process } = this;
    const events = new ControlEvents();
    const timers = {
      set: (run: () => void, delayMs: number) => {
        const timer = { isCleared: false };
        process.after(delayMs, () => {
          if (timer.isCleared) return;
          world.touch();
          run();
        });
        return timer;
      },
      clear: (timer: unknown) => {
        (timer as { isCleared: boolean }).isCleared = true;
      },
    };
    const shared = {
      ...{ heartbeatIntervalMs: TIMING.heartbeatIntervalMs, missedMax: TIMING.missedMax, timers },
      ...{ reconnectGraceMs: TIMING.reconnectGraceMs, now: () => world.now },
      newCommandId: () => newId('cmd'),
    };
    this.context = {
      exportNames: { nameOf: ({ id }) => id },
      ...{ store, events, log: SILENT, timing: TIMING, policy: POLICY, now: () => world.now, newId },
      nodeFleet: new Fleet({
        ...{ ...shared, noun: 'node', offlineCode: 'BW_NODE_OFFLINE', unknownCode: 'BW_NODE_NOT_FOUND' },
        onChange: (_id, online) => online && this.#memberCame(world),
      }),
      agentFleet: new Fleet({
        ...{ ...shared, noun: 'agent', offlineCode: 'BW_AGENT_OFFLINE', unknownCode: 'BW_AGENT_NOT_FOUND' },
        onChange: (_id, online) => online && this.#memberCame(world),
      }),
    };
    const tombstones = new TombstoneCollector(this.context);
    this.attachments = new Attachments(this.context, tombstones, {
      reconciles: mutation !== 'skip-reconcile',
    });
    this.rebuilder = new Rebuilder(this.context, tombstones);
    process.every(TIMING.heartbeatIntervalMs / 2, () => {
      world.touch();
      this.context.nodeFleet.tick();
      this.context.agentFleet.tick();
    });
    process.every(SWEEP_MS, () => this.#sweep(world));
    process.every(SWEEP_MS * 8, () => {
      world.touch();
      void tombstones.sweep();
    });
    world.touch();
    void this.attachments.recover();
  }

  #memberCame(world: World): void {
    world.touch();
    this.rebuilder.memberCame();
  }

  #sweep(world: World): void {
    world.touch();
    void this.rebuilder.sweep();
  }
}

export class SimControl {
  readonly #host: ControlHost;
  readonly #store = new MemoryStore();
  #daemon: Daemon | null = null;
  /** Paused, and taken for dead: another one has its place. */
  #others: Daemon[] = [];
  #ids = 0;
  #volume: VolumeRecord | null = null;

  constructor(host: ControlHost) {
    this.#host = host;
  }

  /** The volume as it was committed last. */
  get volume(): VolumeRecord {
    return this.#volume!;
  }

  get isRunning(): boolean {
    return this.#daemon !== null;
  }

  async create(volume: VolumeRecord): Promise<void> {
    this.#volume = volume;
    await this.#store.commit([volumes.create(volume.id, volume)]);
  }

  start(): void {
    if (this.#daemon !== null) return;
    const store = this.#storeOf(() => daemon.process);
    const daemon: Daemon = new Daemon(this.#host, store, (prefix) => `${prefix}-${++this.#ids}`);
    this.#daemon = daemon;
  }

  get process(): Process | null {
    return this.#daemon?.process ?? null;
  }

  kill(): void {
    this.#daemon?.process.kill();
    this.#daemon = null;
  }

  /** It stops for a while; meanwhile another one begins, on the same store, and both go on. */
  replace(takeoverMs: number, pauseMs: number): void {
    const daemon = this.#daemon;
    if (daemon === null) return;
    const { world } = this.#host;
    daemon.process.stop();
    world.after(takeoverMs, () => {
      if (this.#daemon !== daemon) return;
      this.#others.push(daemon);
      this.#daemon = null;
      this.start();
    });
    world.after(pauseMs, () => daemon.process.continue());
    world.after(pauseMs + SECOND_LIFE_MS, () => this.#others.includes(daemon) && daemon.process.kill());
  }

  /** Only one goes on, awake. */
  settle(): void {
    for (const { process } of this.#others.splice(0)) process.kill();
    this.#daemon?.process.continue();
    this.start();
  }

  /** Something the operator asks; null when nobody is there to answer, or the process dies meanwhile. */
  ask<T>(
    run: (attachments: Attachments, context: Context) => Promise<T>,
    answered: (answer: T | BlockwireError) => void,
  ): boolean {
    const daemon = this.#daemon;
    if (daemon === null) return false;
    const { world } = this.#host;
    world.touch();
    run(daemon.attachments, daemon.context).then(
      (answer) => daemon.process.enter(() => answered(answer)),
      (error: unknown) => daemon.process.enter(() => answered(toBlockwireError(error))),
    );
    return true;
  }

  /** A node is to be emptied, or not any more. */
  drain(nodeId: string, isDraining: boolean, done: () => void): void {
    this.ask(
      (_attachments, context) => setDraining(context, nodeId, isDraining),
      (answer) => !isError(answer) && done(),
    );
  }

  /** A member registers, watches and sends heartbeats for as long as its process lives. */
  join(member: Member): void {
    const { process, heartbeatMs } = member;
    const { network } = this.#host;
    let watch: { daemon: Daemon; close: () => void } | null = null;
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
    run: (daemon: Daemon) => Promise<T>,
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
      const daemon = this.#daemon;
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

  async #register({ context, attachments, rebuilder }: Daemon, member: Member): Promise<void> {
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

  #openWatch({ context, process }: Daemon, member: Member, ended: () => void): () => void {
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

  /** The store as one process sees it: commits take a while, and an answer that comes after its end is never seen. */
  #storeOf(processOf: () => Process): MetadataStore {
    const { world } = this.#host;
    const commit = (changes: readonly Change[]): Promise<CommitResult> =>
      new Promise((resolve) => {
        world.after(world.delay(COMMIT_MS), () => {
          // The process has ended meanwhile: its commit arrived in time, or not.
          if (!processOf().isAlive && world.random.oneIn(2)) return;
          world.touch();
          void this.#commit(this.#mutated(changes)).then((result) => {
            if (result.committed) this.#observe(changes);
            processOf().enter(() => {
              world.touch();
              resolve(result);
            });
          });
        });
      });
    return {
      get: (key) => this.#store.get(key),
      list: (prefix) => this.#store.list(prefix),
      close: () => this.#store.close(),
      commit,
    };
  }

  async #commit(changes: readonly Change[]): Promise<CommitResult> {
    if (this.#host.mutation !== 'ignore-versions') return await this.#store.commit(changes);
    const versions = await Promise.all(
      changes.map(async ({ key }) => (await this.#store.get(key))?.version ?? 0),
    );
    return await this.#store.commit(
      changes.map((change, i) => ({ ...change, expectedVersion: versions[i]! })),
    );
  }

  #mutated(changes: readonly Change[]): readonly Change[] {
    const { mutation } = this.#host;
    if (mutation !== 'keep-rebuild-of-old-writer' && mutation !== 'remove-before-sync') return changes;
    return changes.map((change) => {
      if (!change.key.startsWith('volume/')) return change;
      if (mutation === 'remove-before-sync') return withoutReplaced(change);
      const next = change.value as unknown as VolumeRecord;
      const before = this.volume;
      if (next.generation === before.generation) return change;
      const replicas = next.replicas.map((replica, i) =>
        before.replicas[i]!.state === 'rebuilding' ? before.replicas[i]! : replica,
      );
      return { ...change, value: { ...next, replicas } } as unknown as Change;
    });
  }

  #observe(changes: readonly Change[]): void {
    for (const { key, value } of this.#mutated(changes)) {
      if (!key.startsWith('volume/') || value === undefined) continue;
      this.#volume = value as unknown as VolumeRecord;
      this.#host.onVolume(this.#volume);
    }
  }
}

/** Drops what is to be replaced as soon as its replacement is named, for a mutation. */
function withoutReplaced(change: Change): Change {
  const volume = change.value as unknown as VolumeRecord;
  const replaced = volume.replicas.map(({ replaces }) => replaces);
  const replicas = volume.replicas.filter(({ nodeId }) => !replaced.includes(nodeId));
  return { ...change, value: { ...volume, replicas } } as unknown as Change;
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

export const DEVICE_OPTIONS = DEFAULT_DEVICE_OPTIONS;
