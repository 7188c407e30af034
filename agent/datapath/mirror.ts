/**
 * One volume's mirror: which replicas a request goes to, and when it is done. Pure logic; links, completions and reports
 * are interfaces, so that the same code runs on the kernel and in a simulator.
 *
 * Invariants:
 * - A write completes when every member (in sync, or being rebuilt and joined) acknowledged it, or left the membership.
 * - A replica being rebuilt joins when its link is up, in all queues at once: it gets every write that begins from then on,
 *   and no read.
 * - The mirror never decides that a replica is out: it reports the loss, and goes on when the membership says so.
 * - Requests that overlap are never in flight together, unless both read (request-order.ts).
 * - A tag is completed exactly once, and only while no link can still touch its buffer: a link reports `linkDown`
 *   after its last operation ended.
 */

import type { Agreement } from './agreement.ts';
import { type Fence, Fences } from './fences.ts';
import type { SharedRanges } from './ranges.ts';
import { NO_REPLICA, Reads } from './reads.ts';
import { Operation, type RequestTable } from './request.ts';
import { type OrderHost, RequestOrder } from './request-order.ts';
import { Standing } from './standing.ts';

export type { Fence } from './fences.ts';

export const REPLICAS_COUNT_MAX = 8;
const EIO = 5;
const SPOILED = 'a write failed on the last replica in sync';

/** The way to one replica. */
export interface ReplicaLink {
  /** Queues the request of a tag, unless it is in flight here already. Only called while the link is up. */
  submit(tag: number): void;
  /** Requests submitted and not yet answered. */
  readonly inFlightCount: number;
  /** Drops the connections for good; `linkDown` follows once nothing is in flight, unless it was down. */
  close(): void;
}

export interface MirrorHost {
  /** @param result bytes done, or a negative errno */
  complete(tag: number, result: number): void;
  /** A replica stopped answering while others are in sync: ask for a membership without it. */
  reportLost(replica: number, reason: string): void;
  /** Every write has ended that was in flight when the fence began. */
  fencePassed?(fence: Fence): void;
  /** The link to a replica being rebuilt is up; it joins in all queues at once: `joinAgreed`. */
  readyToJoin?(replica: number): void;
}

export class Mirror implements OrderHost {
  readonly #requests: RequestTable;
  readonly #links: readonly ReplicaLink[];
  readonly #host: MirrorHost;
  readonly #standing: Standing;
  readonly #order: RequestOrder;
  readonly #reads: Reads;
  readonly #fences: Fences;
  /** What all queues have to see change at once; null if there are no others. */
  readonly #agreement: Agreement | null;
  /** Per tag: 1 while it is in flight. */
  readonly #inFlight: Uint8Array;
  /** Per tag of a write: replicas whose acknowledgement is missing, a bit each. */
  readonly #awaited: Uint32Array;
  /** Per tag of a write: the error to complete with, 0 for none. */
  readonly #error: Int32Array;
  #activeCount = 0;
  /** What was acknowledged may be gone: the next flush says so. */
  #hasLoss = false;
  /** Of the agreement's losses, those that are noted here. */
  #lossCount = 0;
  /** Being rebuilt, and no longer right: reported until they have left, whatever their links do. */
  #spoiled = 0;
  #failing = false;
  #failingUnserved = false;
  /** Reads answered with an error by a replica. */
  readErrorCount = 0;
  /** Reads moved to another replica, and writes sent to the same one again. */
  failoverCount = 0;
  retryCount = 0;

  /**
   * @param options.links may grow before a membership names what is new
   * @param options.inSync a bit for each index of `links`
   * @param options.standing another one of the simulator's, which is wrong on purpose
   */
  constructor(options: {
    requests: RequestTable;
    links: readonly ReplicaLink[];
    host: MirrorHost;
    inSync: number;
    ranges?: SharedRanges | null;
    agreement?: Agreement | null;
    standing?: Standing;
  }) {
    const { requests, links, host, inSync, ranges = null, agreement = null } = options;
    this.#requests = requests;
    this.#links = links;
    this.#host = host;
    this.#agreement = agreement;
    this.#standing = options.standing ?? new Standing(inSync);
    this.#order = new RequestOrder({ requests, host: this, ranges });
    this.#inFlight = this.#order.inFlight;
    this.#reads = new Reads({ requests, links, standing: this.#standing, agreement });
    const passed = (fence: Fence): void => host.fencePassed?.(fence);
    this.#fences = new Fences({ requests, inFlight: this.#inFlight, passed });
    this.#awaited = new Uint32Array(requests.depth);
    this.#error = new Int32Array(requests.depth);
  }

  /** Requests that were started and not completed. */
  get activeCount(): number {
    return this.#activeCount;
  }

  /** Writes that waited for an overlapping request. */
  get overlapCount(): number {
    return this.#order.overlapCount;
  }

  /** Replicas that are in sync and connected, a bit each. */
  get servingMask(): number {
    return this.#standing.serving;
  }

  /** Members that get every write, a bit each. */
  get writtenMask(): number {
    return this.#standing.written;
  }

  /** `failEverything` was called: there is no way back. */
  get isFailing(): boolean {
    return this.#failing;
  }

  /** The replicas on this host, a bit each. */
  set localMask(mask: number) {
    this.#standing.local = mask;
  }

  /** Every replica being rebuilt has joined, and every write has ended that was in flight when the last one did. */
  get isSettled(): boolean {
    return this.#standing.joining === 0 && this.#fences.isJoinPassed;
  }

  /** Takes on the request in row `tag`. */
  start(tag: number): void {
    this.#activeCount++;
    this.#order.take(tag);
  }

  /** Nothing holds the request back any more. */
  begin(tag: number): void {
    if (this.#failing) this.#finish(tag, -EIO);
    else if (this.#requests.operation[tag] === Operation.READ) this.#startRead(tag);
    else this.#write(tag);
  }

  /** Another queue's request ended for which one of this queue may have waited. */
  retryWaiting(): void {
    this.#order.release();
  }

  /** A replica answered. @param error an NBD error, 0 for success */
  answered(replica: number, tag: number, error: number): void {
    if (this.#requests.operation[tag] === Operation.READ) this.#readAnswered(replica, tag, error);
    else this.#writeAnswered(replica, tag, error);
  }

  /** A link is ready: what it missed is sent again (writes are idempotent), parked reads go on. */
  linkUp(replica: number): void {
    const bit = 1 << replica;
    const standing = this.#standing;
    standing.up |= bit;
    if ((standing.joining & bit) !== 0) {
      if (this.#agreement === null) this.#join(bit);
      else this.#host.readyToJoin?.(replica);
    } else if ((standing.lost & bit) === 0) {
      this.#resume(replica);
    }
  }

  /** Replicas that were ready in every queue have joined. */
  joinAgreed(): void {
    const agreed = this.#agreement === null ? 0 : this.#agreement.joined & this.#standing.joining;
    if (agreed !== 0) this.#join(agreed);
  }

  /** A link ended, and none of its operations is in flight any more. */
  linkDown(replica: number, reason: string): void {
    const bit = 1 << replica;
    const standing = this.#standing;
    standing.up &= ~bit;
    if ((standing.leaving & bit) === 0) this.#loseOrWait(replica, reason);
    standing.leaving &= ~bit;
    for (let tag = 0; tag < this.#inFlight.length; tag++) {
      if (this.#inFlight[tag] === 1 && this.#reads.asked(tag) === replica) {
        this.failoverCount++;
        this.#read(tag);
      }
    }
    // Replicas that left the membership are forgotten only now that their link cannot touch a buffer any more.
    if ((standing.written & bit) === 0) this.#forget(replica);
    if (this.#failingUnserved && standing.serving === 0) this.#failUntouched();
  }

  /**
   * The control plane's word on who is in sync and who is being rebuilt, a bit each. One that was in sync and is being
   * rebuilt now leaves, and joins when its link has been down and is up again. So do those in `rejoined`: they left and
   * became members again since the last membership, or another replica has their place. All masks change before the
   * first link is closed: a write that ends with it may pass the barrier's fence.
   */
  membership(inSync: number, rebuilding = 0, rejoined = 0): void {
    if (this.#failing) return;
    const standing = this.#standing;
    const { left, kept } = standing.change(inSync, rebuilding, rejoined);
    this.#spoiled &= kept;
    if (rebuilding === 0) this.#fences.dropJoin();
    for (let replica = 0; replica < this.#links.length; replica++) {
      const bit = 1 << replica;
      if ((left & bit) !== 0) {
        standing.leaving |= bit;
        this.#links[replica]!.close();
        if ((standing.up & bit) !== 0) continue;
        standing.leaving &= ~bit;
        this.#forget(replica);
      } else if ((kept & bit) !== 0) {
        // The last one in sync is no longer lost, spoiled or not: its content is the truth.
        if ((this.#spoiled & bit) !== 0 && this.#loseOrWait(replica, SPOILED)) continue;
        if ((standing.up & bit) !== 0) this.#resume(replica);
        else this.#loseOrWait(replica, 'it does not answer');
      }
    }
    this.#retryParkedReads();
  }

  /** Begins the checkpoint's fence; `fencePassed` follows, but never once a write has failed (fences.ts). */
  fence(): void {
    this.#fences.begin('checkpoint');
  }

  /** From now on no write begins; `fencePassed` follows when none is in flight. Reads go on. */
  holdWrites(): void {
    this.#order.hold();
    this.#fences.begin('hold');
  }

  releaseWrites(): void {
    this.#order.unhold();
  }

  /**
   * The last replica in sync is back without what it had not flushed, even if it acknowledged it: what is not complete is
   * sent again, and for what was, the next flush fails, and all that are in flight now.
   */
  noteLoss(): void {
    if (this.#agreement !== null) {
      const { lossCount } = this.#agreement;
      if (lossCount === this.#lossCount) return;
      this.#lossCount = lossCount;
    }
    this.#hasLoss = true;
    for (let tag = 0; tag < this.#inFlight.length; tag++) {
      const operation = this.#requests.operation[tag];
      if (this.#inFlight[tag] === 0 || operation === Operation.READ) continue;
      this.#awaited[tag] = this.#standing.written;
      if (operation === Operation.FLUSH) this.#error[tag] = -EIO;
    }
    for (let replica = 0; replica < this.#links.length; replica++) {
      if ((this.#standing.reachable & (1 << replica)) !== 0) this.#resume(replica);
    }
  }

  /** From now on every request fails, those in flight as soon as their links are down: the operator's way out. */
  failEverything(): void {
    this.#failing = true;
    for (let replica = 0; replica < this.#links.length; replica++) this.#links[replica]!.close();
    this.#standing.clear();
    this.#failUntouched();
    this.#order.open();
  }

  /** While `on`, what no connected in-sync replica can serve fails instead of waiting. */
  failUnserved(on: boolean): void {
    this.#failingUnserved = on;
    if (on && this.#standing.serving === 0) this.#failUntouched();
  }

  #read(tag: number): void {
    const replica = this.#reads.choose(tag);
    if (replica !== NO_REPLICA) this.#links[replica]!.submit(tag);
    else if (this.#failing || this.#failingUnserved || this.#reads.isHopeless(tag)) this.#finish(tag, -EIO);
  }

  #startRead(tag: number): void {
    this.#reads.begin(tag);
    this.#read(tag);
  }

  #join(bits: number): void {
    this.#standing.joining &= ~bits;
    this.#standing.joined |= bits;
    this.#fences.begin('join');
  }

  #readAnswered(replica: number, tag: number, error: number): void {
    const bit = 1 << replica;
    if (error !== 0) {
      this.#reads.noteFailure(tag, bit);
      this.readErrorCount++;
    } else if ((this.#reads.readable & bit) !== 0) {
      this.#finish(tag, this.#requests.lengthBytes[tag]!);
      return;
    }
    this.failoverCount++;
    this.#read(tag);
  }

  #write(tag: number): void {
    const standing = this.#standing;
    if (standing.joining !== 0) this.joinAgreed();
    this.#error[tag] = 0;
    this.#awaited[tag] = standing.written;
    if (standing.inSync === 0) {
      this.#finish(tag, -EIO);
      return;
    }
    const { reachable } = standing;
    for (let replica = 0; replica < this.#links.length; replica++) {
      if ((reachable & (1 << replica)) !== 0) this.#links[replica]!.submit(tag);
    }
    if (reachable === 0 && this.#failingUnserved) this.#finish(tag, -EIO);
  }

  #writeAnswered(replica: number, tag: number, error: number): void {
    const bit = 1 << replica;
    if (error !== 0) {
      if (this.#loseOrWait(replica, `it answered a write with NBD error ${error}`)) return;
      // The last replica: its error is the truth.
      this.#error[tag] = -error;
      this.#loseRebuilds(tag);
    }
    this.#awaited[tag] = this.#awaited[tag]! & ~bit;
    if (this.#awaited[tag] === 0) this.#finishWrite(tag);
  }

  /** Reports a member as lost, unless it is the last one in sync; returns whether writes now wait for the verdict. */
  #loseOrWait(replica: number, reason: string): boolean {
    const loss = this.#standing.lose(1 << replica);
    if (loss === 'new') this.#host.reportLost(replica, reason);
    return loss === 'new' || loss === 'known';
  }

  /**
   * A write has failed where replicas being rebuilt copy from, and may have succeeded there, where it counts as newer than
   * what they copy: they have to begin anew, and the write ends when they have left.
   */
  #loseRebuilds(tag: number): void {
    const { joined } = this.#standing;
    this.#awaited[tag] = this.#awaited[tag]! | joined;
    this.#spoiled |= joined;
    for (let replica = 0; replica < this.#links.length; replica++) {
      if ((joined & (1 << replica)) !== 0) this.#loseOrWait(replica, SPOILED);
    }
  }

  /** Sends again what a replica has not acknowledged, and parked reads. */
  #resume(replica: number): void {
    const bit = 1 << replica;
    const link = this.#links[replica]!;
    for (let tag = 0; tag < this.#inFlight.length; tag++) {
      if (this.#inFlight[tag] === 0) continue;
      if (this.#requests.operation[tag] === Operation.READ) {
        if (this.#reads.asked(tag) === NO_REPLICA) this.#read(tag);
      } else if ((this.#awaited[tag]! & bit) !== 0) {
        this.retryCount++;
        link.submit(tag);
      }
    }
  }

  #retryParkedReads(): void {
    for (let tag = 0; tag < this.#inFlight.length; tag++) {
      const parked = this.#inFlight[tag] === 1 && this.#reads.asked(tag) === NO_REPLICA;
      if (parked && this.#requests.operation[tag] === Operation.READ) this.#read(tag);
    }
  }

  /** Stops waiting for a replica that is out of the membership. */
  #forget(replica: number): void {
    const bit = 1 << replica;
    for (let tag = 0; tag < this.#inFlight.length; tag++) {
      if (this.#inFlight[tag] === 0 || (this.#awaited[tag]! & bit) === 0) continue;
      this.#awaited[tag] = this.#awaited[tag]! & ~bit;
      if (this.#awaited[tag] === 0) this.#finishWrite(tag);
    }
    if (this.#failing) this.#failUntouched();
  }

  #failUntouched(): void {
    for (let tag = 0; tag < this.#inFlight.length; tag++) {
      if (
        this.#inFlight[tag] === 1 &&
        this.#reads.asked(tag) === NO_REPLICA &&
        (this.#awaited[tag]! & this.#standing.up) === 0
      ) {
        this.#awaited[tag] = 0;
        this.#error[tag] = -EIO;
        this.#finishWrite(tag);
      }
    }
  }

  #finishWrite(tag: number): void {
    const failed = this.#error[tag]!;
    const isWrite = this.#requests.operation[tag] === Operation.WRITE;
    const hasLoss = this.#hasLoss && this.#requests.operation[tag] === Operation.FLUSH;
    if (hasLoss) this.#hasLoss = false;
    const error = this.#failing || hasLoss ? -EIO : failed;
    // The acknowledgements may be of before a loss that this queue is yet to be told of.
    if (error === 0 && this.#agreement !== null && this.#agreement.lossCount !== this.#lossCount) {
      this.noteLoss();
      return;
    }
    this.#finish(tag, error !== 0 ? error : isWrite ? this.#requests.lengthBytes[tag]! : 0);
  }

  #finish(tag: number, result: number): void {
    this.#reads.forget(tag);
    this.#awaited[tag] = 0;
    this.#activeCount--;
    this.#order.end(tag);
    if (this.#requests.operation[tag] !== Operation.READ) this.#fences.ended(tag, result);
    this.#host.complete(tag, result);
    this.#order.release();
  }
}
