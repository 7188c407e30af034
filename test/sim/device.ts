/** One attached volume: the agent's own mirror and checkpointer over simulated links, and its talk with the control plane. */
import { Checkpointer } from '@blockwire/agent/datapath/checkpointer.ts';
import { MemberSlots } from '@blockwire/agent/datapath/members.ts';
import { type Fence, Mirror, type MirrorHost } from '@blockwire/agent/datapath/mirror.ts';
import { Operation, RequestTable } from '@blockwire/agent/datapath/request.ts';
import type { AttachAction, Membership } from '@blockwire/control/domain/context.ts';
import { isError } from './control.ts';
import { type LinkHost, SimLink } from './link.ts';
import type { Process } from './network.ts';
import type { Cluster } from './node.ts';

const DEPTH = 8;
const REPORT_RETRY_MS = 150;

/** What an application asks of a device. */
export interface Io {
  readonly operation: number;
  readonly offset: number;
  readonly length: number;
  /** What it writes. */
  readonly value: number;
  /** @param values what was read; empty otherwise */
  readonly done: (result: number, values: readonly number[]) => void;
}

export class SimDevice implements MirrorHost, LinkHost {
  readonly cluster: Cluster;
  readonly process: Process;
  readonly attachmentId: string;
  readonly generation: number;
  readonly name: string;
  readonly requests = new RequestTable(DEPTH);
  readonly mirror: Mirror;
  readonly #agentId: string;
  readonly #slots = new MemberSlots();
  /** By slot. */
  readonly #links: SimLink[] = [];
  readonly #checkpointer: Checkpointer;
  readonly #ios: (Io | null)[] = new Array<Io | null>(DEPTH).fill(null);
  readonly #values: (readonly number[])[] = new Array<readonly number[]>(DEPTH).fill([]);
  #membership: Membership;
  #isEnded = false;
  /** Who waits until all replicas being rebuilt have joined, and earlier writes are done. */
  #joinWaiters: (() => void)[] = [];
  readonly #reporting = new Set<number>();

  constructor(options: {
    readonly cluster: Cluster;
    readonly process: Process;
    readonly agentId: string;
    readonly action: AttachAction;
  }) {
    const { cluster, process, agentId, action } = options;
    const { membership } = action;
    this.cluster = cluster;
    this.process = process;
    this.#agentId = agentId;
    this.attachmentId = action.attachmentId;
    this.generation = membership.generation;
    this.name = `${agentId}/${action.attachmentId}`;
    this.#membership = membership;
    const { inSync } = this.#slots.apply(membership.replicas);
    this.#addLinks();
    this.mirror = new Mirror({ requests: this.requests, links: this.#links, host: this, inSync });
    this.#mutate();
    cluster.onLoss(membership.lossEpoch);
    this.#checkpointer = new Checkpointer({
      epoch: membership.epoch,
      host: {
        sendMark: (number, epoch) => {
          for (const link of this.#links) link.sendMark(number, epoch);
        },
        sendCheckpoint: (number, epoch) => {
          for (const link of this.#links) link.sendCheckpoint(number, epoch);
        },
        beginFence: () => {
          if (cluster.mutation === 'checkpoint-early') this.fencePassed('checkpoint');
          else this.mirror.fence();
        },
      },
    });
    for (let replica = 0; replica < this.#links.length; replica++) {
      if ((inSync & (1 << replica)) !== 0) this.#links[replica]!.start();
    }
    // What an earlier writer has left is covered by the first checkpoint.
    this.#checkpointer.noteWrite();
    process.every(cluster.checkpointMs, () => !this.#isEnded && this.#checkpointer.tick());
  }

  get epoch(): number {
    return this.#membership.epoch;
  }

  get mark(): { readonly number: number; readonly epoch: number } {
    return this.#checkpointer.latest;
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }

  get activeCount(): number {
    return this.mirror.activeCount;
  }

  /** Whether a replica answers. */
  get isServing(): boolean {
    return this.mirror.servingMask !== 0;
  }

  /** False when all tags are taken, or the device is gone. */
  submit(io: Io): boolean {
    const tag = this.#ios.indexOf(null);
    if (tag < 0 || this.#isEnded) return false;
    this.#ios[tag] = io;
    this.#values[tag] = [];
    this.requests.operation[tag] = io.operation;
    this.requests.offsetBytes[tag] = io.offset;
    this.requests.lengthBytes[tag] = this.#isMutated(io.operation) ? 0 : io.length;
    if (io.operation === Operation.WRITE) this.#checkpointer.noteWrite();
    this.mirror.start(tag);
    return true;
  }

  /** Takes on a membership; `done` runs when no write is in flight that began before every joining replica got writes. */
  update(membership: Membership, done: () => void): void {
    this.#apply(membership);
    this.#joinWaiters.push(done);
    this.#answerJoinWaiters();
  }

  end(): void {
    this.#isEnded = true;
    for (const link of this.#links) link.close();
  }

  valueOf(tag: number): number {
    return this.#ios[tag]!.value;
  }

  lengthOf(tag: number): number {
    return this.#ios[tag]!.length;
  }

  readData(tag: number, values: readonly number[]): void {
    this.#values[tag] = values;
  }

  complete(tag: number, result: number): void {
    const io = this.#ios[tag]!;
    this.#ios[tag] = null;
    if (!this.#isEnded) io.done(result, this.#values[tag]!);
  }

  fencePassed(fence: Fence): void {
    if (fence === 'checkpoint') this.#checkpointer.fencePassed();
    else this.#answerJoinWaiters();
  }

  reportLost(replica: number, reason: string): void {
    if (this.#isEnded || this.#reporting.has(replica)) return;
    this.#reporting.add(replica);
    this.#report(replica, reason);
    if (this.cluster.mutation === 'decide-alone') {
      const { replicas } = this.#membership;
      const state = (i: number): 'stale' | 'inSync' | 'rebuilding' =>
        i === replica ? 'stale' : replicas[i]!.state;
      this.#apply({ ...this.#membership, replicas: replicas.map((r, i) => ({ ...r, state: state(i) })) });
    }
  }

  #report(replica: number, reason: string): void {
    const nodeId = this.#slots.nodeIds[replica]!;
    const { volumeId, generation, epoch } = this.#membership;
    this.cluster.world.note(10, replica, () => `${this.name} lost ${nodeId}: ${reason}`);
    const report = { agentId: this.#agentId, volumeId, generation, epoch, nodeId, reason };
    this.cluster.control.replicaLost(this.process, report, (answer) => {
      if (this.#isEnded) return;
      if (!isError(answer)) {
        this.#reporting.delete(replica);
        // One that has been overtaken answers what was reported meanwhile all the same.
        this.#apply(answer.epoch < this.epoch ? this.#membership : answer);
      } else if (answer.code !== 'BW_GENERATION_OLD') {
        this.process.after(REPORT_RETRY_MS, () => !this.#isEnded && this.#report(replica, reason));
      }
    });
  }

  #apply(membership: Membership): void {
    const before = this.#membership;
    if (membership.generation !== this.generation || membership.epoch < before.epoch || this.#isEnded) return;
    this.#membership = membership;
    const { mutation, world } = this.cluster;
    const states = (): string =>
      membership.replicas.map(({ nodeId, state }) => `${nodeId} ${state}`).join(', ');
    world.note(11, membership.epoch, () => `${this.name} goes by epoch ${membership.epoch}: ${states()}`);
    this.cluster.onLoss(membership.lossEpoch);
    if (membership.lossEpoch > before.lossEpoch && mutation !== 'swallow-loss') this.mirror.noteLoss();
    this.#checkpointer.membership(membership.epoch);
    const { inSync, rebuilding, rejoined } = this.#slots.apply(membership.replicas);
    this.#addLinks();
    this.mirror.membership(inSync, rebuilding, rejoined);
    for (const [replica, link] of this.#links.entries()) {
      const isMember = ((inSync | rebuilding) & (1 << replica)) !== 0;
      if (isMember) link.start();
      else link.close();
    }
    this.#answerJoinWaiters();
  }

  /** One for each slot that is new. There are fewer nodes than slots, so none is used twice. */
  #addLinks(): void {
    for (const nodeId of this.#slots.nodeIds.slice(this.#links.length)) {
      this.#links.push(new SimLink(this, this.#links.length, this.cluster.node(nodeId)));
    }
  }

  #answerJoinWaiters(): void {
    if (this.mirror.isSettled) {
      const waiters = this.#joinWaiters;
      this.#joinWaiters = [];
      for (const answer of waiters) answer();
    } else if (this.cluster.mutation === 'skip-barrier') {
      for (const answer of this.#joinWaiters.splice(0)) answer();
    }
  }

  /** Requests without a length overlap nothing. */
  #isMutated(operation: number): boolean {
    const { mutation } = this.cluster;
    if (mutation === 'read-past-writes') return operation === Operation.READ;
    return mutation === 'overlap-in-flight' && operation === Operation.WRITE;
  }

  #mutate(): void {
    const { mirror } = this;
    switch (this.cluster.mutation) {
      case 'acknowledge-early': {
        const answered = mirror.answered.bind(mirror);
        mirror.answered = (replica, tag, error) => {
          answered(replica, tag, error);
          if (this.requests.operation[tag] !== Operation.WRITE || this.#ios[tag] === null) return;
          const io = this.#ios[tag]!;
          this.#ios[tag] = { ...io, done: () => {} };
          io.done(io.length, []);
        };
        break;
      }
      case 'serve-rebuilding':
        Object.defineProperty(mirror, 'servingMask', { get: () => mirror.writtenMask & this.#upMask() });
        break;
      default:
    }
  }

  #upMask(): number {
    return this.#links.reduce((mask, link, replica) => (link.isUp ? mask | (1 << replica) : mask), 0);
  }
}
