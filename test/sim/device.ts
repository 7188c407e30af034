/** One attached volume: its queues, the agent's own checkpoints, slots and agreement, and its talk with the control plane. */
import { Checkpoints } from '@blockwire/agent/checkpoints.ts';
import { AgreementWriter, createAgreement } from '@blockwire/agent/datapath/agreement.ts';
import { MemberSlots } from '@blockwire/agent/datapath/members.ts';
import { createRanges } from '@blockwire/agent/datapath/ranges.ts';
import { Operation } from '@blockwire/agent/datapath/request.ts';
import type { AttachAction, Membership } from '@blockwire/control/domain/context.ts';
import { isError } from './members.ts';
import { Mailbox, type Process } from './network.ts';
import type { Cluster } from './node.ts';
import { DEPTH, type Io, type QueueHost, type QueueMembership, SimQueue } from './queue.ts';

const REPORT_RETRY_MS = 150;

export class SimDevice implements QueueHost {
  readonly process: Process;
  readonly attachmentId: string;
  readonly generation: number;
  readonly name: string;
  readonly #cluster: Cluster;
  readonly #agentId: string;
  readonly #slots = new MemberSlots();
  readonly #agreement: AgreementWriter;
  readonly #queues: readonly SimQueue[];
  /** To each queue. */
  readonly #mailboxes: readonly Mailbox[];
  readonly #checkpoints: Checkpoints;
  /** Taken so far. */
  #writeCount = 0;
  #membership: Membership;
  #isEnded = false;
  /** By queue: the epoch by which every joining replica has joined there, and what began before is done. */
  readonly #settledEpochs: number[];
  /** Who waits until all queues are. */
  #joinWaiters: (() => void)[] = [];
  readonly #reporting = new Set<number>();

  constructor(options: {
    readonly cluster: Cluster;
    readonly process: Process;
    readonly agentId: string;
    readonly action: AttachAction;
  }) {
    const { cluster, process, agentId, action } = options;
    const { generation, epoch, lossEpoch } = action.membership;
    const { queueCount, world } = cluster;
    this.#cluster = cluster;
    this.process = process;
    this.#agentId = agentId;
    this.attachmentId = action.attachmentId;
    this.generation = generation;
    this.name = `${agentId}/${action.attachmentId}`;
    this.#membership = action.membership;
    cluster.onLoss(lossEpoch);
    const agreement = createAgreement();
    this.#agreement = new AgreementWriter(agreement, queueCount);
    const membership = this.#take(action.membership, false);
    const ranges = createRanges(queueCount, DEPTH);
    this.#mailboxes = Array.from({ length: queueCount }, () => new Mailbox(world, process));
    const wakes = Array.from({ length: queueCount }, () => new Mailbox(world, process));
    this.#settledEpochs = new Array<number>(queueCount).fill(epoch);
    this.#queues = Array.from(
      { length: queueCount },
      (_, queueId) =>
        new SimQueue({
          ...{ cluster, process, queueId, queueCount, generation, membership, ranges, agreement },
          ...{ name: this.name, host: this, toDevice: new Mailbox(world, process) },
          wake: (id) => wakes[id]!.post(() => this.#queues[id]!.mirror.retryWaiting()),
        }),
    );
    this.#checkpoints = new Checkpoints({
      ...{ generation, epoch },
      queues: {
        count: () => (cluster.mutation === 'checkpoint-at-first-fence' ? 1 : queueCount),
        post: (message) => message.type === 'mark' && this.#tell((queue) => queue.markOf(message)),
        postTo: (id, message) =>
          message.type === 'checkpoint' &&
          this.#mailboxes[id]!.post(() => this.#queues[id]!.sendCheckpoint(message.number, message.epoch)),
      },
      writeCount: () => this.#writeCount,
      inFlightCount: () => this.activeCount,
    });
    process.every(cluster.checkpointMs, () => !this.#isEnded && this.#checkpoints.tick());
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }

  get inSyncCount(): number {
    return this.#membership.replicas.filter(({ state }) => state === 'inSync').length;
  }

  get activeCount(): number {
    return this.#queues.reduce((sum, { mirror }) => sum + mirror.activeCount, 0);
  }

  /** Whether every queue goes by the membership of this epoch. */
  goesBy(epoch: number): boolean {
    return this.#queues.every((queue) => queue.epoch === epoch);
  }

  /** Whether a replica answers each queue. */
  get isServing(): boolean {
    return this.#queues.every(({ isServing }) => isServing);
  }

  /** False when all tags of the queue are taken, or the device is gone. @param queue taken modulo their count */
  submit(queue: number, io: Io): boolean {
    if (io.operation === Operation.WRITE) this.#writeCount++;
    return this.#queues[queue % this.#queues.length]!.submit(io);
  }

  /** Takes on a membership; `done` runs when no write is in flight that began before every joining replica got writes. */
  update(membership: Membership, done: () => void): void {
    this.#apply(membership);
    this.#joinWaiters.push(done);
    this.#answerJoinWaiters();
  }

  /** One queue's connection to a node is reset, the others' are not. */
  breakLink(queue: number, nodeId: string): void {
    const slot = this.#slots.slotOf(nodeId);
    if (slot !== null) this.#queues[queue % this.#queues.length]!.breakLink(slot);
  }

  /** One queue hears late of what the device tells it from now on. */
  deafen(queue: number, milliseconds: number): void {
    this.#mailboxes[queue % this.#queues.length]!.hold(milliseconds);
  }

  end(): void {
    this.#isEnded = true;
    for (const queue of this.#queues) queue.end();
  }

  fencePassed(queueId: number, number: number): void {
    this.#checkpoints.fencePassed(queueId, number);
  }

  linked(): void {
    this.#checkpoints.linked();
  }

  readyToJoin(queueId: number, replica: number, epoch: number): void {
    if (this.#agreement.ready(queueId, replica, epoch)) this.#tell((queue) => queue.mirror.joinAgreed());
  }

  settled(queueId: number, epoch: number): void {
    this.#settledEpochs[queueId] = epoch;
    if (this.#cluster.mutation === 'barrier-at-first-queue') this.#settledEpochs.fill(epoch);
    this.#answerJoinWaiters();
  }

  lost(replica: number, reason: string): void {
    if (this.#isEnded || this.#reporting.has(replica)) return;
    this.#reporting.add(replica);
    this.#report(replica, reason);
    if (this.#cluster.mutation === 'decide-alone') {
      const nodeId = this.#slots.nodeIds[replica];
      const replicas = this.#membership.replicas.map((member) =>
        member.nodeId === nodeId ? { ...member, state: 'stale' as const } : member,
      );
      this.#apply({ ...this.#membership, replicas });
    }
  }

  #report(replica: number, reason: string): void {
    const { control, world } = this.#cluster;
    const nodeId = this.#slots.nodeIds[replica]!;
    const { volumeId, generation, epoch } = this.#membership;
    world.note(10, replica, () => `${this.name} lost ${nodeId}: ${reason}`);
    const report = { agentId: this.#agentId, volumeId, generation, epoch, nodeId, reason };
    control.members.replicaLost(this.process, report, (answer) => {
      if (this.#isEnded) return;
      if (!isError(answer)) {
        this.#reporting.delete(replica);
        // One that has been overtaken answers what was reported meanwhile all the same.
        this.#apply(answer.epoch < this.#membership.epoch ? this.#membership : answer);
      } else if (answer.code !== 'BW_GENERATION_OLD') {
        this.process.after(REPORT_RETRY_MS, () => !this.#isEnded && this.#report(replica, reason));
      }
    });
  }

  #apply(membership: Membership): void {
    const before = this.#membership;
    if (membership.generation !== this.generation || membership.epoch < before.epoch || this.#isEnded) return;
    this.#membership = membership;
    const { mutation, world } = this.#cluster;
    const { epoch, lossEpoch } = membership;
    const states = (): string =>
      membership.replicas.map(({ nodeId, state }) => `${nodeId} ${state}`).join(', ');
    world.note(11, epoch, () => `${this.name} goes by epoch ${epoch}: ${states()}`);
    // Several queues go by a loss from here on; a single one when it hears of it.
    const isAlone = this.#queues.length === 1;
    if (!isAlone) this.#cluster.onLoss(lossEpoch);
    this.#checkpoints.membership(epoch);
    const order = this.#take(membership, lossEpoch > before.lossEpoch && mutation !== 'swallow-loss');
    this.#tell((queue) => {
      queue.membership(order);
      if (isAlone) this.#cluster.onLoss(lossEpoch);
    });
    // Even if it is the same one again: the queues are yet to hear of it.
    this.#settledEpochs.fill(0);
  }

  /** Goes by a membership, before any queue is told. */
  #take(membership: Membership, hasLoss: boolean): QueueMembership {
    const { epoch, replicas } = membership;
    const masks = { epoch, hasLoss, ...this.#slots.apply(replicas) };
    this.#agreement.goBy(masks);
    return { ...masks, nodeIds: [...this.#slots.nodeIds] };
  }

  #tell(run: (queue: SimQueue) => void): void {
    for (const [id, queue] of this.#queues.entries()) this.#mailboxes[id]!.post(() => run(queue));
  }

  #answerJoinWaiters(): void {
    if (this.#settledEpochs.some((epoch) => epoch !== this.#membership.epoch)) return;
    const waiters = this.#joinWaiters;
    this.#joinWaiters = [];
    for (const answer of waiters) answer();
  }
}
