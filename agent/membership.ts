/**
 * The membership that one device goes by, and its talk with the control plane about it: what is new goes to the queues,
 * what they lose is reported until there is a verdict.
 *
 *   queues ── lost, refused ──▶ report ──▶ control plane ──▶ answer ┐
 *   control plane ── UpdateMembership ──────────────────────────────┴▶ apply ──▶ queues ── settled ──▶ barrier
 *
 * Invariants:
 * - Epochs never go back; a device serves one generation.
 * - A loss is answered by a membership, old or new: the queues hear of it and lose the replica again if it is still away.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Membership, ReplicaState } from '@blockwire/proto/control/types.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { MemberSlots, type MemberState } from './datapath/members.ts';
import type { MembershipOrder, ReplicaTarget } from './datapath/messages.ts';
import { within } from './deadline.ts';
import { isLocal, Targets } from './targets.ts';

const REPORT_RETRY_MS = 500;
/** What a node says to a writer that goes by the wrong membership: the control plane knows the right one. */
const OUTDATED: readonly string[] = ['BW_EPOCH_OLD', 'BW_GENERATION_OLD'];

/** Tells the control plane that a replica is lost; resolves with the membership that follows from it. */
export type ReportLost = (report: {
  membership: Membership;
  nodeId: string;
  reason: string;
}) => Promise<Membership>;

export interface DeviceMembershipOptions {
  readonly log: Logger;
  readonly membership: Membership;
  readonly reportLost: ReportLost;
  /** Hands a new membership to the queues. @param reusedSlots those that serve another replica than before */
  readonly onApplied: (order: MembershipOrder, reusedSlots: readonly number[]) => void;
  /** Another writer has the volume: this device may not write any more. */
  readonly onFenced: (reason: string) => void;
}

export class DeviceMembership {
  readonly #options: DeviceMembershipOptions;
  readonly #slots = new MemberSlots();
  readonly #addresses = new Targets();
  /** By slot. */
  readonly #targets: ReplicaTarget[] = [];
  /** By node: the report under way; several queues lose the same replica. */
  readonly #reports = new Map<string, Promise<void>>();
  /** By queue: the epoch by which every joining replica has joined there, and what began before is done. */
  readonly #settled: number[] = [];
  #settledChanged = Promise.withResolvers<void>();
  #current: Membership;
  #order: MembershipOrder | null = null;
  #isEnded = false;

  constructor(options: DeviceMembershipOptions) {
    this.#options = options;
    this.#current = options.membership;
  }

  /** Finds the replicas; before anything else. Throws BW_NO_IN_SYNC_REPLICA, BW_INVALID_ARGUMENT, BW_PEER_UNREACHABLE. */
  async open(): Promise<void> {
    this.#take(this.#current, await this.#resolve(this.#current));
    if (this.order.inSync === 0) {
      throw new BlockwireError('BW_NO_IN_SYNC_REPLICA', 'the volume has no replica in sync');
    }
  }

  get current(): Membership {
    return this.#current;
  }

  /** What the queues go by. */
  get order(): MembershipOrder {
    return this.#order!;
  }

  /** The slot of a replica; null without one. */
  slotOf(nodeId: string): number | null {
    return this.#slots.slotOf(nodeId);
  }

  /** Whose slot it is. */
  nodeIdOf(slot: number): string {
    return this.#slots.nodeIds[slot]!;
  }

  /**
   * Takes on a membership; an older one than that in force is passed over. Throws BW_GENERATION_OLD for that of another
   * writer.
   */
  async update(membership: Membership): Promise<void> {
    if (membership.generation !== this.#current.generation) {
      throw new BlockwireError(
        'BW_GENERATION_OLD',
        `the device serves generation ${this.#current.generation}, not ${membership.generation}`,
      );
    }
    const targets = await this.#resolve(membership);
    if (membership.epoch < this.#current.epoch || this.#isEnded) return;
    this.#apply(membership, targets);
  }

  /** A queue goes by `epoch`, and its joining replicas have joined. */
  queueSettled(queueId: number, epoch: number): void {
    this.#settled[queueId] = epoch;
    this.#settledChanged.resolve();
    this.#settledChanged = Promise.withResolvers<void>();
  }

  /**
   * The barrier: resolves when every queue goes by `epoch` or a later one, all replicas being rebuilt get every write, and
   * no write is in flight that began before. Throws BW_TIMEOUT, BW_SHUTTING_DOWN.
   */
  async settled(epoch: number, queueCount: number, milliseconds: number): Promise<void> {
    const deadlineMs = performance.now() + milliseconds;
    const isSettled = (): boolean =>
      Array.from({ length: queueCount }, (_, id) => this.#settled[id] ?? 0).every((at) => at >= epoch);
    while (!isSettled()) {
      if (this.#isEnded) throw new BlockwireError('BW_SHUTTING_DOWN', 'the device is being given up');
      const leftMs = Math.max(1, deadlineMs - performance.now());
      await within(this.#settledChanged.promise, leftMs, 'earlier writes are not done');
    }
  }

  /** A queue lost a replica. One report at a time of each: its verdict is for all queues. */
  lost(slot: number, reason: string): void {
    const nodeId = this.nodeIdOf(slot);
    if (this.#isEnded || this.#reports.has(nodeId)) return;
    const report = this.#report(nodeId, reason).finally(() => this.#reports.delete(nodeId));
    this.#reports.set(nodeId, report);
  }

  /** A node did not let a queue in: also the last replica in sync is reported then, which is never lost otherwise. */
  refused(slot: number, code: string, reason: string): void {
    if (OUTDATED.includes(code)) this.lost(slot, reason);
  }

  /** Reports nothing any more. */
  end(): void {
    this.#isEnded = true;
    this.#settledChanged.resolve();
  }

  /** Asks for the verdict on a lost replica until there is one; meanwhile the queues hold what it has to acknowledge. */
  async #report(nodeId: string, reason: string): Promise<void> {
    const { log, reportLost } = this.#options;
    const { volumeId } = this.#current;
    log.warn({ volume: volumeId, node: nodeId, reason }, 'replica lost');
    while (!this.#isEnded && this.#isWritten(nodeId)) {
      try {
        const answer = await reportLost({ membership: this.#current, nodeId, reason });
        await this.update(answer.epoch < this.#current.epoch ? this.#current : answer);
        return;
      } catch (error) {
        const { code, message } = toBlockwireError(error);
        if (code === 'BW_GENERATION_OLD' || code === 'BW_VOLUME_NOT_FOUND') {
          log.error({ volume: volumeId, code }, `this agent may not write any more: ${message}`);
          this.end();
          this.#options.onFenced(message);
          return;
        }
        log.warn({ volume: volumeId, code }, `no verdict on the lost replica yet: ${message}`);
        await sleep(REPORT_RETRY_MS);
      }
    }
  }

  #isWritten(nodeId: string): boolean {
    return this.#current.replicas.some(
      (replica) => replica.nodeId === nodeId && memberState(replica.state) !== 'stale',
    );
  }

  #resolve({ replicas }: Membership): Promise<ReplicaTarget[]> {
    const written = replicas.filter(({ state }) => memberState(state) !== 'stale');
    return Promise.all(written.map((replica) => this.#addresses.resolve(replica)));
  }

  #apply(membership: Membership, targets: readonly ReplicaTarget[]): void {
    const isNews = membership.epoch > this.#current.epoch;
    const reusedSlots = this.#take(membership, targets);
    this.#options.onApplied(this.order, reusedSlots);
    if (!isNews) return;
    const { volumeId, epoch, replicas } = membership;
    const states = replicas.map(({ nodeId, state }) => `${nodeId} ${memberState(state)}`);
    this.#options.log.info({ volume: volumeId, epoch, replicas: states }, 'new membership');
  }

  /** Goes by this membership. Returns the slots that serve another replica than before. */
  #take(membership: Membership, targets: readonly ReplicaTarget[]): number[] {
    const { epoch, lossEpoch, replicas } = membership;
    const members = replicas.map(({ nodeId, state, joinedEpoch }) => ({
      ...{ nodeId, joinedEpoch, state: memberState(state) },
    }));
    const masks = this.#slots.apply(members);
    const reusedSlots: number[] = [];
    let local = 0;
    for (const target of targets) {
      const slot = this.#slots.slotOf(target.nodeId)!;
      const before = this.#targets[slot];
      if (before !== undefined && before.nodeId !== target.nodeId) reusedSlots.push(slot);
      this.#targets[slot] = target;
      if (isLocal(target.address)) local |= 1 << slot;
    }
    const hasLoss = lossEpoch > this.#current.lossEpoch;
    this.#current = membership;
    this.#order = { type: 'membership', epoch, ...masks, local, hasLoss, targets: [...this.#targets] };
    return reusedSlots;
  }
}

const STATES: Readonly<Record<ReplicaState, MemberState>> = {
  REPLICA_STATE_UNSPECIFIED: 'stale',
  REPLICA_STATE_IN_SYNC: 'inSync',
  REPLICA_STATE_REBUILDING: 'rebuilding',
  REPLICA_STATE_STALE: 'stale',
};

/** What a device makes of a state on the wire: one that it does not know gets nothing. */
export function memberState(state: ReplicaState): MemberState {
  return STATES[state] ?? 'stale';
}
