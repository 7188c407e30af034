/** One queue of a device: the agent's own mirror over simulated links, in a thread that hears from its device by message. */
import { Agreement } from '@blockwire/agent/datapath/agreement.ts';
import { type Fence, Mirror, type MirrorHost } from '@blockwire/agent/datapath/mirror.ts';
import { SharedRanges } from '@blockwire/agent/datapath/ranges.ts';
import { Operation, RequestTable } from '@blockwire/agent/datapath/request.ts';
import { Standing } from '@blockwire/agent/datapath/standing.ts';
import { type LinkHost, SimLink } from './link.ts';
import type { Mailbox, Process } from './network.ts';
import type { Cluster } from './node.ts';
import type { Mark } from './wire.ts';

export const DEPTH = 8;

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

/** What a device tells its queues of a membership; replicas are a bit each, by slot. */
export interface QueueMembership {
  readonly epoch: number;
  readonly inSync: number;
  readonly rebuilding: number;
  /** Left and joined again since the last one. */
  readonly rejoined: number;
  /** What was not flushed may be lost. */
  readonly hasLoss: boolean;
  /** By slot. */
  readonly nodeIds: readonly string[];
}

/** What a queue tells its device: called in the device's thread. */
export interface QueueHost {
  lost(replica: number, reason: string): void;
  /** A replica answers. */
  linked(): void;
  readyToJoin(queueId: number, replica: number, epoch: number): void;
  /** The queue goes by the membership of this epoch, and no write of it is in flight that began before. */
  settled(queueId: number, epoch: number): void;
  fencePassed(queueId: number, number: number): void;
}

export class SimQueue implements MirrorHost, LinkHost {
  readonly cluster: Cluster;
  readonly process: Process;
  readonly name: string;
  readonly generation: number;
  readonly requests = new RequestTable(DEPTH);
  readonly mirror: Mirror;
  epoch: number;
  mark: Mark = { number: 0, epoch: 0 };
  readonly #queueId: number;
  readonly #host: QueueHost;
  readonly #toDevice: Mailbox;
  /** By slot. */
  readonly #links: SimLink[] = [];
  readonly #ios: (Io | null)[] = new Array<Io | null>(DEPTH).fill(null);
  /** For a mutation: replicas that this queue is ready to write to. */
  #ready = 0;
  /** For a mutation: losses that this queue has been told of. */
  #losses = 0;
  readonly #values: (readonly number[])[] = new Array<readonly number[]>(DEPTH).fill([]);
  #isEnded = false;

  constructor(options: {
    readonly cluster: Cluster;
    readonly process: Process;
    readonly queueId: number;
    readonly queueCount: number;
    /** Names the device. */
    readonly name: string;
    readonly generation: number;
    readonly membership: QueueMembership;
    readonly ranges: SharedArrayBuffer;
    readonly agreement: SharedArrayBuffer;
    readonly toDevice: Mailbox;
    readonly host: QueueHost;
    readonly wake: (queueId: number) => void;
  }) {
    const { cluster, queueId, queueCount, membership, wake } = options;
    const { mutation } = cluster;
    this.cluster = cluster;
    this.process = options.process;
    this.name = `${options.name}/${queueId}`;
    this.generation = options.generation;
    this.epoch = membership.epoch;
    this.#queueId = queueId;
    this.#host = options.host;
    this.#toDevice = options.toDevice;
    const isAlone = queueCount === 1;
    const ranges =
      isAlone || mutation === 'overlap-across-queues'
        ? null
        : new SharedRanges({ shared: options.ranges, queueId, queueCount, queueDepth: DEPTH, wake });
    const agreement = isAlone ? null : new Agreement(options.agreement);
    this.mirror = new Mirror({
      ...{ requests: this.requests, links: this.#links, host: this, inSync: 0, ranges, agreement },
      standing: mutation === 'serve-rebuilding' ? new ServingRebuilds(0) : new Standing(0),
    });
    this.#mutate(agreement);
    this.membership(membership);
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
    this.mirror.start(tag);
    return true;
  }

  membership(membership: QueueMembership): void {
    const { epoch, inSync, rebuilding, rejoined, hasLoss, nodeIds } = membership;
    if (this.#isEnded) return;
    this.epoch = epoch;
    // There are fewer nodes than slots, so none is used twice.
    for (const nodeId of nodeIds.slice(this.#links.length)) {
      this.#links.push(new SimLink(this, this.#links.length, this.cluster.node(nodeId)));
    }
    this.#ready &= rebuilding & ~rejoined;
    if (hasLoss) {
      this.#losses++;
      this.mirror.noteLoss();
    }
    this.mirror.membership(inSync, rebuilding, rejoined);
    for (const [replica, link] of this.#links.entries()) {
      const isMember = ((inSync | rebuilding) & (1 << replica)) !== 0;
      if (isMember) link.start();
      else link.close();
    }
    this.#tellSettled();
  }

  markOf({ number, epoch }: Mark): void {
    if (this.#isEnded) return;
    this.mark = { number, epoch };
    for (const link of this.#links) link.sendMark(number, epoch);
    if (this.cluster.mutation === 'checkpoint-early') this.fencePassed('checkpoint');
    else this.mirror.fence();
  }

  sendCheckpoint(number: number, epoch: number): void {
    for (const link of this.#links) link.sendCheckpoint(number, epoch);
  }

  breakLink(replica: number): void {
    this.#links[replica]?.break();
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
    const { number } = this.mark;
    if (fence === 'join') this.#tellSettled();
    else this.#toDevice.post(() => this.#host.fencePassed(this.#queueId, number));
  }

  linkUp(replica: number): void {
    this.mirror.linkUp(replica);
    this.#toDevice.post(() => this.#host.linked());
  }

  reportLost(replica: number, reason: string): void {
    this.#toDevice.post(() => this.#host.lost(replica, reason));
  }

  readyToJoin(replica: number): void {
    const { epoch } = this;
    this.#ready |= 1 << replica;
    if (this.cluster.mutation === 'join-apart') this.mirror.joinAgreed();
    else this.#toDevice.post(() => this.#host.readyToJoin(this.#queueId, replica, epoch));
  }

  #tellSettled(): void {
    const { epoch } = this;
    if (this.mirror.isSettled || this.cluster.mutation === 'skip-barrier') {
      this.#toDevice.post(() => this.#host.settled(this.#queueId, epoch));
    }
  }

  /** Requests without a length overlap nothing. */
  #isMutated(operation: number): boolean {
    const { mutation } = this.cluster;
    if (mutation === 'read-past-writes') return operation === Operation.READ;
    return mutation === 'overlap-in-flight' && operation === Operation.WRITE;
  }

  #mutate(agreement: Agreement | null): void {
    const { mirror } = this;
    switch (this.cluster.mutation) {
      case 'join-apart':
        if (agreement !== null) Object.defineProperty(agreement, 'joined', { get: () => this.#ready });
        break;
      case 'read-from-left':
        if (agreement !== null) Object.defineProperty(agreement, 'readable', { get: () => -1 });
        break;
      case 'loss-apart':
        if (agreement !== null) Object.defineProperty(agreement, 'lossCount', { get: () => this.#losses });
        break;
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
      default:
    }
  }
}

/** For a mutation: reads from replicas that are being rebuilt. */
class ServingRebuilds extends Standing {
  override get serving(): number {
    return this.reachable;
  }
}
