/** One simulation: a cluster with one volume, an application, an operator, and faults; then the checks. */
import { Operation } from '@blockwire/agent/datapath/request.ts';
import {
  DEFAULT_DEVICE_OPTIONS,
  type ReplicaRecord,
  type VolumeRecord,
} from '@blockwire/control/domain/records.ts';
import { newVolume } from '@blockwire/control/domain/volume-state.ts';
import { SimAgent } from './agent.ts';
import { SimControl } from './control.ts';
import type { SimDevice } from './device.ts';
import type { Disk } from './disk.ts';
import { offsetOf, SIZE_BYTES, UNIT_BYTES, UNITS_COUNT } from './geometry.ts';
import { History } from './history.ts';
import { isError, VOLUME_ID } from './members.ts';
import type { Mutation } from './mutations.ts';
import { Network } from './network.ts';
import { type Cluster, SimNode } from './node.ts';
import type { Fault, Op, Plan } from './plan.ts';
import { Violation, World } from './world.ts';

const OPERATOR_MS = 60;
/** How long a cluster that is well may take to be whole again. */
const SETTLE_MS_MAX = 60_000;
const NOTICE_MS = 1500;
const CONTROL_RESTART_MS = 50;

export interface Outcome {
  /** Null: every promise held. */
  readonly violation: string | null;
  readonly digest: number;
  readonly eventCount: number;
  readonly endedMs: number;
  readonly counts: History['counts'];
  readonly rebuilds: number;
  readonly trace: readonly string[];
}

export async function simulate(
  plan: Plan,
  options: { readonly mutation: Mutation; readonly traced: boolean },
): Promise<Outcome> {
  const simulation = new Simulation(plan, options);
  const violation = await simulation.run();
  return simulation.outcome(violation);
}

class Simulation implements Cluster {
  readonly world: World;
  readonly network: Network;
  readonly control: SimControl;
  readonly mutation: Mutation;
  readonly #plan: Plan;
  readonly #nodes: SimNode[];
  readonly #agents: SimAgent[];
  readonly #history = new History();
  #device: SimDevice | null = null;
  /** By attachment: the agent that was asked. */
  readonly #agentOf = new Map<string, SimAgent>();
  #isOperating = false;
  #operation = 0;
  #attachmentCount = 0;
  #nextAgent = 0;
  /** By node: whether the operator wants it drained, and whether the control plane knows. */
  readonly #drained = new Map<string, boolean>();
  readonly #knownDrained = new Map<string, boolean>();
  /** What the operator is to do besides keeping the volume attached. */
  #wish: 'move' | 'detach' | null = null;
  #writeCount = 0;
  #rebuilds = 0;
  #hasFailedWrite = false;
  #lossEpoch = 0;
  #failure: string | null = null;

  constructor(plan: Plan, options: { readonly mutation: Mutation; readonly traced: boolean }) {
    this.#plan = plan;
    this.mutation = options.mutation;
    this.world = new World(plan.seed, { traced: options.traced });
    this.network = new Network(this.world);
    this.control = new SimControl({
      world: this.world,
      network: this.network,
      mutation: this.mutation,
      onVolume: (volume) => this.#observe(volume),
      onMistold: (what) => {
        this.#failure ??= what;
      },
      nodeCommand: (id, process, commandId, action) => this.node(id).command(process, commandId, action),
      nodeRepair: (id, process, order) => this.node(id).repair(process, order),
      agentCommand: (id, process, commandId, action) =>
        this.#agents.find((agent) => agent.id === id)!.command(process, commandId, action),
    });
    const nodeCount = plan.nodeCount + plan.spareCount;
    this.#nodes = Array.from({ length: nodeCount }, (_, i) => new SimNode(this, `node-${i + 1}`));
    this.#agents = Array.from(
      { length: plan.agentCount },
      (_, i) => new SimAgent(this, `agent-${i + 1}`, { onDevice: (device) => this.#onDevice(device) }),
    );
  }

  get checkpointMs(): number {
    return this.#plan.checkpointMs;
  }

  get queueCount(): number {
    return this.#plan.queueCount;
  }

  node(id: string): SimNode {
    return this.#nodes.find((node) => node.id === id)!;
  }

  async run(): Promise<string | null> {
    const { world } = this;
    const nodeIds = this.#nodes.slice(0, this.#plan.nodeCount).map(({ id }) => id);
    const made = newVolume({
      ...{ id: VOLUME_ID, name: 'sim', sizeBytes: SIZE_BYTES, nodeIds },
      createdAt: '',
    });
    await this.control.create({ ...made, state: 'available' });
    this.control.start();
    for (const id of nodeIds) this.node(id).createReplica({ generation: 1, epoch: 1 });
    for (const node of this.#nodes) node.start();
    for (const agent of this.#agents) agent.start();
    for (const op of this.#plan.ops) world.after(op.atMs, () => this.#apply(op));
    for (const fault of this.#plan.faults) world.after(fault.atMs, () => this.#inject(fault));
    world.after(OPERATOR_MS, () => this.#operate());
    try {
      await world.runUntil(this.#plan.endMs, () => this.#failure !== null);
      this.#healAll();
      // Time for everybody to notice what happened last.
      await world.runUntil(world.now + NOTICE_MS, () => this.#failure !== null);
      const settled = await world.runUntil(
        world.now + SETTLE_MS_MAX,
        () => this.#failure !== null || this.#isSettled(),
      );
      if (this.#failure !== null) return this.#failure;
      if (!settled) return `it never settles: ${this.#state()}`;
      await this.#readEverything();
      if (this.#failure !== null) return this.#failure;
      this.#history.check(UNITS_COUNT);
      return this.#difference();
    } catch (error) {
      // Whatever is thrown belongs to this seed.
      return error instanceof Violation ? error.message : String((error as Error).stack ?? error);
    }
  }

  outcome(violation: string | null): Outcome {
    const { digest, eventCount, now, trace } = this.world;
    const { counts } = this.#history;
    return { violation, digest, eventCount, endedMs: now, counts, rebuilds: this.#rebuilds, trace };
  }

  // The application

  #apply(op: Op): void {
    const device = this.#device;
    if (device === null || device.isEnded) return;
    device.process.enter(() => this.#submit(device, op));
  }

  #submit(device: SimDevice, op: Op): boolean {
    const { world } = this;
    const history = this.#history;
    const { generation } = device;
    const start = world.now;
    const units = Array.from({ length: op.count }, (_, i) => op.unit + i);
    const range = { offset: offsetOf(op.unit), length: op.count * UNIT_BYTES };
    const done = (text: (result: number, values: readonly number[]) => void) => {
      return (result: number, values: readonly number[]) => {
        world.note(
          20,
          result,
          () => `${op.kind} ${units.join(' ')} → ${result < 0 ? result : values.join(' ')}`,
        );
        this.#guard(() => text(result, values));
      };
    };
    if (op.kind === 'write') {
      const id = ++this.#writeCount;
      const isTaken = device.submit(op.queue, {
        ...{ operation: Operation.WRITE, ...range, value: id },
        done: done((result) => {
          if (result >= 0) history.acknowledge(id, world.now);
          else this.#hasFailedWrite = true;
        }),
      });
      if (!isTaken) return false;
      world.note(
        21,
        id,
        () => `${device.name}/${op.queue % this.queueCount} writes ${id} to ${units.join(' ')}`,
      );
      history.begin({ id, units, generation, start });
      return true;
    }
    const isRead = op.kind === 'read';
    const isTaken = device.submit(op.queue, {
      operation: isRead ? Operation.READ : Operation.FLUSH,
      ...(isRead ? range : { offset: 0, length: 0 }),
      value: 0,
      done: done((result, values) => {
        if (isRead && result < 0 && device.inSyncCount > 1) {
          throw new Violation(`a read of ${units.join(' ')} fails, though several replicas are in sync`);
        }
        if (!isRead) history.flush(generation, result >= 0, start, world.now);
        else if (result >= 0) history.read(generation, units, values, start, world.now);
      }),
    });
    return isTaken;
  }

  #guard(run: () => void): void {
    try {
      run();
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      this.#failure ??= error.message;
    }
  }

  async #readEverything(): Promise<void> {
    const device = this.#device!;
    for (let unit = 0; unit < UNITS_COUNT; unit++) {
      this.#submit(device, { atMs: 0, kind: 'read', unit, count: 1, queue: unit });
      const isDone = await this.world.runUntil(
        this.world.now + 5000,
        () => device.activeCount === 0 || this.#failure !== null,
      );
      if (this.#failure !== null) return;
      if (!isDone) this.#failure = 'the last reads do not end';
    }
  }

  onLoss(lossEpoch: number): void {
    if (lossEpoch <= this.#lossEpoch) return;
    this.#lossEpoch = lossEpoch;
    this.#history.loss(this.world.now);
  }

  // The operator

  #onDevice(device: SimDevice): void {
    this.world.note(30, device.generation, () => `${device.name} is there, generation ${device.generation}`);
    this.#device = device;
    this.#history.admit(device.generation, this.world.now);
  }

  #operate(): void {
    this.world.after(OPERATOR_MS, () => this.#operate());
    for (const [id, isDraining] of this.#drained) {
      if ((this.#knownDrained.get(id) ?? false) !== isDraining)
        this.control.drain(id, isDraining, () => this.#knownDrained.set(id, isDraining));
    }
    if (this.#isOperating || this.control.process === null) return;
    const { attachmentId } = this.control.volume;
    const agent = attachmentId === null ? null : (this.#agentOf.get(attachmentId) ?? null);
    if (attachmentId === null) {
      this.#attach(false);
    } else if (this.#wish !== null) {
      if (this.#wish === 'move') this.#attach(true);
      else this.#detach(attachmentId, false);
      this.#wish = null;
    } else if (
      agent?.process == null ||
      this.#device === null ||
      this.#device.isEnded ||
      this.#device.process !== agent.process
    ) {
      // The host has failed, and the device with it.
      this.#detach(attachmentId, true);
    }
  }

  #attach(force: boolean): void {
    const agents = this.#agents.filter(({ process }) => process !== null);
    const agent = agents[this.#nextAgent++ % Math.max(1, agents.length)];
    if (agent === undefined) return;
    const id = `att-${++this.#attachmentCount}`;
    this.#agentOf.set(id, agent);
    const request = {
      id,
      volumeId: VOLUME_ID,
      agentId: agent.id,
      datapath: 'auto',
      options: DEFAULT_DEVICE_OPTIONS,
      force,
    } as const;
    this.#ask(force ? 'attach by force' : 'attach', (attachments) => attachments.attach(request));
  }

  #detach(id: string, force: boolean): void {
    this.#ask(force ? 'detach by force' : 'detach', (attachments) => attachments.detach(id, { force }));
  }

  #ask(name: string, run: Parameters<SimControl['ask']>[0]): void {
    this.#isOperating = true;
    const operation = ++this.#operation;
    const process = this.control.process;
    const end = (): void => {
      if (this.#operation === operation) this.#isOperating = false;
    };
    process?.onKill(end);
    this.control.ask(run, (answer) => {
      end();
      this.world.note(
        31,
        operation,
        () => `${name}: ${isError(answer) ? `${answer.code} ${answer.message}` : 'done'}`,
      );
    });
  }

  #observe(volume: VolumeRecord): void {
    const { world } = this;
    const before = this.#last;
    this.#last = volume;
    if (before !== null && before.attachmentId !== null && volume.attachmentId !== before.attachmentId) {
      this.#history.retire(before.generation, world.now);
    }
    for (const { nodeId, state } of volume.replicas) {
      const earlier = before?.replicas.find((replica) => replica.nodeId === nodeId);
      if (state === 'inSync' && earlier?.state === 'rebuilding') this.#rebuilds++;
    }
    this.#keepLastGood();
    const states = (): string =>
      volume.replicas.map((r) => `${r.nodeId} ${r.state} ${r.staleSinceEpoch ?? ''}`).join(', ');
    world.note(
      32,
      volume.epoch,
      () => `generation ${volume.generation} epoch ${volume.epoch} ${volume.attachmentId}: ${states()}`,
    );
  }

  #last: VolumeRecord | null = null;

  // Faults

  #inject(fault: Fault): void {
    const { world, network } = this;
    const { kind, durationMs } = fault;
    const node = this.#nodes[fault.target % this.#nodes.length]!;
    const other = this.#nodes[fault.other % this.#nodes.length]!;
    const agent = this.#agents[fault.other % this.#agents.length]!;
    const later = (run: () => void): void => void world.after(durationMs, run);
    const { disk } = node;
    const setDisk = (state: Partial<Pick<Disk, 'slowness' | 'isFailing'>>): void =>
      void (disk !== null && Object.assign(disk, state));
    const cut = (pairs: readonly (readonly [string, string])[]): void => {
      for (const [a, b] of pairs) network.cut(a, b);
      later(() => {
        for (const [a, b] of pairs) network.heal(a, b);
      });
    };
    world.note(40, fault.target, () => `fault: ${kind} ${node.id} ${other.id} ${agent.id} ${durationMs}`);
    switch (kind) {
      case 'kill-node':
      case 'power-node':
        node.kill(kind === 'power-node');
        later(() => node.start());
        break;
      case 'stop-node':
        this.#pause(node.process, durationMs);
        break;
      case 'slow-disk':
        setDisk({ slowness: 50 });
        later(() => setDisk({ slowness: 1 }));
        break;
      case 'failing-disk':
        setDisk({ isFailing: true });
        later(() => setDisk({ isFailing: false }));
        break;
      case 'rot':
        this.#rot(node, fault.other + durationMs);
        break;
      case 'isolate-node':
        cut(
          ['control', ...[...this.#nodes, ...this.#agents].map(({ id }) => id)].map(
            (id) => [node.id, id] as const,
          ),
        );
        break;
      case 'cut-nodes':
        cut([[node.id, other.id]]);
        break;
      case 'cut-agent-node':
        cut([[agent.id, node.id]]);
        break;
      case 'break-link':
        this.#device?.process.enter(() => this.#device!.breakLink(fault.other, node.id));
        break;
      case 'deaf-queue':
        this.#device?.deafen(fault.other, durationMs);
        break;
      case 'cut-agent-control':
        cut([[agent.id, 'control']]);
        break;
      case 'cut-control-node':
        cut([['control', node.id]]);
        break;
      case 'kill-agent':
        agent.kill();
        later(() => agent.start());
        break;
      case 'stop-agent':
        this.#pause(agent.process, durationMs);
        break;
      case 'kill-control':
        this.control.kill();
        world.after(CONTROL_RESTART_MS + durationMs / 4, () => this.control.start());
        break;
      case 'drain':
        this.#drained.set(node.id, true);
        later(() => this.#drained.set(node.id, false));
        break;
      case 'replace-control':
        this.control.replace(CONTROL_RESTART_MS + (fault.target * durationMs) / 8, durationMs);
        break;
      case 'move':
      case 'detach':
        this.#wish = kind;
        break;
      default:
        for (const each of this.#nodes) each.kill(true);
        later(() => {
          for (const each of this.#nodes) each.start();
        });
    }
  }

  /** One node rots at a time, and only while another one is in sync: what rots on the last one is lost. */
  #rot(node: SimNode, choice: number): void {
    const isInSync = ({ nodeId, state }: ReplicaRecord): boolean => nodeId === node.id && state === 'inSync';
    const others = this.#nodes.filter((other) => other !== node);
    if (others.some(({ disk }) => disk?.hasRot) || !this.control.volume.replicas.some(isInSync)) return;
    node.disk?.rot(choice);
    this.#keepLastGood();
  }

  #keepLastGood(): void {
    const inSync = this.control.volume.replicas.filter(({ state }) => state === 'inSync');
    if (inSync.length === 1) this.node(inSync[0]!.nodeId).disk?.unrot();
  }

  #pause(process: { stop(): void; continue(): void } | null, durationMs: number): void {
    process?.stop();
    this.world.after(durationMs, () => process?.continue());
  }

  #healAll(): void {
    this.world.note(41, 0, () => 'all faults end');
    this.network.healAll();
    for (const node of this.#nodes) {
      if (node.disk !== null) Object.assign(node.disk, { slowness: 1, isFailing: false });
      node.process?.continue();
      // What a failed write has left there is only computed anew at a start.
      if (node.disk?.hasFailed) node.kill(false);
      node.start();
    }
    for (const agent of this.#agents) {
      agent.process?.continue();
      agent.start();
    }
    this.control.settle();
    for (const id of this.#drained.keys()) this.#drained.set(id, false);
    // Where a write has failed its writer sends no checkpoints any more, and only the next one makes the replicas equal.
    this.#wish = this.#hasFailedWrite ? 'move' : null;
  }

  // The end

  #isSettled(): boolean {
    const { attachmentId, replicas } = this.control.volume;
    const device = this.#device;
    return (
      device !== null &&
      attachmentId !== null &&
      !device.isEnded &&
      device.process.isAlive &&
      device.attachmentId === attachmentId &&
      device.generation === this.control.volume.generation &&
      device.goesBy(this.control.volume.epoch) &&
      device.activeCount === 0 &&
      replicas.length === this.#plan.nodeCount &&
      replicas.every(({ state, nodeId }) => state === 'inSync' && !this.node(nodeId).disk?.hasRot)
    );
  }

  #state(): string {
    const { attachmentId, generation, epoch, replicas } = this.control.volume;
    const states = replicas.map(({ nodeId, state }) => `${nodeId} ${state}`).join(', ');
    const device = this.#device;
    const open = device === null ? 'none' : `${device.name}, ${device.activeCount} requests open`;
    return `generation ${generation} epoch ${epoch}, ${attachmentId}, ${states}; device ${open}`;
  }

  #difference(): string | null {
    const [first, ...others] = this.control.volume.replicas.map(({ nodeId }) => this.node(nodeId));
    for (const node of others) {
      for (let unit = 0; unit < UNITS_COUNT; unit++) {
        const [a, b] = [first!.disk?.data[unit], node.disk?.data[unit]];
        if (a !== b) return `at rest unit ${unit} is ${a} on ${first!.id} and ${b} on ${node.id}`;
      }
    }
    return null;
  }
}
