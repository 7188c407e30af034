/**
 * The I/O of one attached volume, seen from the main thread: its queues, and all that they are told and tell. Made before
 * its queues; those come with `start`.
 *
 *   queues ⇄ membership (who is written to)  ·  availability (is it served)  ·  checkpoints  ·  writes held back
 */
import type { Membership } from '@blockwire/proto/control/types.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { Availability } from './availability.ts';
import { CHECKPOINT_MS, Checkpoints } from './checkpoints.ts';
import { COUNTERS, CounterIndex, openCounters } from './datapath/counters.ts';
import type { MemberState } from './datapath/members.ts';
import type { MembershipOrder, ToWorker } from './datapath/messages.ts';
import type { IoState } from './io-watch.ts';
import { DeviceMembership, memberState, type ReportLost } from './membership.ts';
import { type QueueData, Queues } from './queues.ts';
import { WriteHold } from './write-hold.ts';

/** The barrier of a membership; the control plane asks again. */
const SETTLE_MS_MAX = 5_000;

export interface VolumeIoOptions {
  readonly log: Logger;
  readonly membership: Membership;
  /** I/O fails when no in-sync replica has answered for so long; zero: it waits. */
  readonly ioTimeoutMs: number;
  readonly reportLost: ReportLost;
  /** A queue worker failed: only a new process can serve the device again. */
  readonly onFatal: (error: Error) => void;
}

export interface ReplicaStatus {
  readonly nodeId: string;
  readonly state: MemberState;
  /** Of its links and latencies; null for one that has had none. */
  readonly slot: number | null;
  readonly connected: boolean;
  /** Why it is not connected. */
  readonly reason: string;
}

export class VolumeIo {
  readonly #options: VolumeIoOptions;
  readonly #membership: DeviceMembership;
  readonly #availability: Availability;
  readonly #checkpoints: Checkpoints;
  readonly #hold: WriteHold;
  #queues: Queues | null = null;
  #checkpointTimer: NodeJS.Timeout | null = null;

  constructor(options: VolumeIoOptions) {
    this.#options = options;
    const { log, membership, ioTimeoutMs, reportLost } = options;
    this.#membership = new DeviceMembership({
      ...{ log, membership, reportLost },
      onApplied: (order, reusedSlots) => this.#goBy(order, reusedSlots),
      onFenced: () => this.#fence(),
    });
    const queues = {
      count: () => this.queueCount,
      post: (message: ToWorker) => this.post(message),
      postTo: (queueId: number, message: ToWorker) => this.#queues?.postTo(queueId, message),
    };
    this.#availability = new Availability({
      ...{ log, ioTimeoutMs, volumeId: this.volumeId },
      link: (replica) => this.#queues!.link(replica),
      nodeIdOf: (replica) => this.#membership.nodeIdOf(replica),
      isServed: () => this.#queues?.serves(this.#membership.order.inSync) ?? false,
      replicas: () => this.replicas,
      failUnserved: (on) => this.post({ type: 'failUnserved', on }),
    });
    this.#checkpoints = new Checkpoints({
      ...{ queues, generation: membership.generation, epoch: membership.epoch },
      writeCount: () => this.#writeCount(),
      inFlightCount: () => this.counters[CounterIndex.inFlight]!,
    });
    this.#hold = new WriteHold({ queues, log: log.child({ volume: this.volumeId }) });
  }

  /** Before `start`. Throws BW_NO_IN_SYNC_REPLICA, BW_INVALID_ARGUMENT, BW_PEER_UNREACHABLE. */
  open(): Promise<void> {
    return this.#membership.open();
  }

  get volumeId(): string {
    return this.#options.membership.volumeId;
  }

  get membership(): Membership {
    return this.#membership.current;
  }

  get ioState(): IoState {
    return this.#availability.ioState;
  }

  get replicas(): readonly ReplicaStatus[] {
    return this.membership.replicas.map(({ nodeId, state }) => {
      const slot = this.#membership.slotOf(nodeId);
      const link = slot === null ? undefined : this.#queues?.link(slot);
      const { up = false, reason = '' } = link ?? {};
      return { nodeId, state: memberState(state), slot, connected: up, reason };
    });
  }

  /** Checkpoints sent so far. */
  get checkpointCount(): number {
    return this.#checkpoints.sentCount;
  }

  /** Whether writes are held back for a snapshot. */
  get isHoldingWrites(): boolean {
    return this.#hold.isHolding;
  }

  get queueCount(): number {
    return this.#queues?.count ?? 0;
  }

  /** By queue: its counters and latency histograms (datapath/counters.ts). */
  get queueMemories(): readonly SharedArrayBuffer[] {
    return this.#queues?.memories ?? [];
  }

  /** The counters of all queues together, see COUNTERS. */
  get counters(): Float64Array {
    const sums = new Float64Array(COUNTERS.length);
    for (const memory of this.queueMemories) {
      for (const [index, value] of openCounters(memory).entries()) sums[index] = sums[index]! + value;
    }
    return sums;
  }

  /** Starts the queues: they connect. @param name starts the names of the threads */
  start(name: string, data: Omit<QueueData, 'membership' | 'generation'>): Queues {
    const { log, onFatal } = this.#options;
    this.#queues = new Queues({
      name,
      data: { ...data, membership: this.#membership.order, generation: this.membership.generation },
      events: {
        lost: (replica, reason) => this.#membership.lost(replica, reason),
        refused: (replica, code, reason) => this.#membership.refused(replica, code, reason),
        linked: (replica) => this.#linked(replica),
        settled: (queueId, epoch) => this.#membership.queueSettled(queueId, epoch),
        fencePassed: (queueId, number) => this.#checkpoints.fencePassed(queueId, number),
        held: (queueId, number) => this.#hold.queueHeld(queueId, number),
        failed: (error) => {
          log.error({ err: error, volume: this.volumeId }, 'a queue worker failed');
          onFatal(error);
        },
      },
    });
    return this.#queues;
  }

  /** The device lives: from now on it counts whether its I/O is served. */
  begin(): void {
    this.#availability.begin();
    this.#checkpointTimer = setInterval(() => this.#checkpoint(), CHECKPOINT_MS);
  }

  /** See Availability. Throws BW_NO_IN_SYNC_REPLICA. */
  async connected(milliseconds: number): Promise<void> {
    const slots = this.replicas.flatMap(({ state, slot }) =>
      state === 'inSync' && slot !== null ? [slot] : [],
    );
    await this.#availability.connected(slots, milliseconds, this.#queues!.ended);
  }

  /** Resolves when every queue reaches an in-sync replica. Throws BW_SHUTTING_DOWN. */
  served(): Promise<void> {
    return this.#availability.served();
  }

  /** Takes on a membership. Throws BW_GENERATION_OLD for that of another writer. */
  update(membership: Membership): Promise<void> {
    return this.#membership.update(membership);
  }

  /**
   * Resolves when all queues go by `epoch`, every replica being rebuilt gets all writes, and none is in flight that began
   * before. Throws BW_TIMEOUT, BW_SHUTTING_DOWN.
   */
  settled(epoch: number): Promise<void> {
    return this.#membership.settled(epoch, this.queueCount, SETTLE_MS_MAX);
  }

  /** See WriteHold. Throws BW_TIMEOUT. */
  holdWrites(milliseconds: number): Promise<void> {
    return this.#hold.hold(milliseconds);
  }

  /** See WriteHold. Throws BW_TIMEOUT. */
  releaseWrites(): void {
    this.#hold.release();
  }

  /** What is held back goes on. */
  endHold(): void {
    this.#hold.end();
  }

  post(message: ToWorker): void {
    this.#queues?.post(message);
  }

  /** Resolves when every worker is gone; at once if there were none. */
  get ended(): Promise<void> {
    return this.#queues?.ended ?? Promise.resolve();
  }

  /** Ends the threads without their consent; what was in flight is with nobody. */
  async terminate(): Promise<void> {
    await this.#queues?.terminate();
  }

  /** Tells nobody anything any more; the workers end by an order, or with the device. */
  end(): void {
    if (this.#checkpointTimer !== null) clearInterval(this.#checkpointTimer);
    this.#hold.end();
    this.#membership.end();
    this.#availability.end();
  }

  #goBy(order: MembershipOrder, reusedSlots: readonly number[]): void {
    for (const slot of reusedSlots) this.#queues?.forgetLink(slot);
    this.post(order);
    this.#checkpoints.membership(order.epoch);
    this.#availability.changed();
  }

  #linked(replica: number): void {
    this.#availability.linked(replica);
    if (this.#queues!.link(replica).up) this.#checkpoints.linked();
  }

  /** Another writer has the volume: whatever waits here fails. */
  #fence(): void {
    this.#availability.giveUp();
    this.post({ type: 'fail' });
  }

  #checkpoint(): void {
    if (this.#membership.order.targets.some(({ isNode }) => isNode)) this.#checkpoints.tick();
  }

  #writeCount(): number {
    const { counters } = this;
    return counters[CounterIndex.writeOps]! + counters[CounterIndex.trimOps]!;
  }
}
