/**
 * What the main thread orders of one queue, carried out on its mirror and links, and what the queue reports back. Not for
 * the hot path: orders come when something changes, and at a checkpoint.
 */
import type { MarkRows } from './mark-rows.ts';
import type { FromWorker, MembershipOrder, ToWorker } from './messages.ts';
import type { Fence, Mirror } from './mirror.ts';
import type { NbdReplicaLink } from './replica-link.ts';

export interface QueueOrdersOptions {
  readonly mirror: Mirror;
  /** By slot; the mirror's own list. More come when a membership names them. */
  readonly links: NbdReplicaLink[];
  readonly makeLink: (slot: number) => NbdReplicaLink;
  readonly marks: MarkRows;
  readonly say: (message: FromWorker) => void;
}

/** The rest is the worker's own. */
export type Order = Exclude<ToWorker, { type: 'release' | 'heap' }>;

export class QueueOrders {
  readonly #options: QueueOrdersOptions;
  #epoch = 0;
  #markNumber = 0;
  #holdNumber = 0;
  #isEnded = false;

  constructor(options: QueueOrdersOptions) {
    this.#options = options;
  }

  obey(order: Order): void {
    const { mirror, marks } = this.#options;
    switch (order.type) {
      case 'membership':
        this.#goBy(order);
        break;
      case 'join':
        mirror.joinAgreed();
        break;
      case 'mark':
        this.#markNumber = order.number;
        this.#submit(marks.mark(order));
        mirror.fence();
        break;
      case 'checkpoint':
        this.#submit(marks.checkpoint(order));
        break;
      case 'hold':
        this.#holdNumber = order.number;
        mirror.holdWrites();
        break;
      case 'unhold':
        mirror.releaseWrites();
        break;
      case 'fail':
        mirror.failEverything();
        break;
      case 'failUnserved':
        mirror.failUnserved(order.on);
        break;
    }
  }

  fencePassed(fence: Fence): void {
    const { say } = this.#options;
    if (fence === 'checkpoint') say({ type: 'fence', number: this.#markNumber });
    else if (fence === 'hold') say({ type: 'held', number: this.#holdNumber });
    else this.#saySettled();
  }

  readyToJoin(replica: number): void {
    this.#options.say({ type: 'ready', replica, epoch: this.#epoch });
  }

  /** The device ends: links are closed and stay so. */
  end(): void {
    this.#isEnded = true;
    for (const link of this.#options.links) link.close();
  }

  #goBy(order: MembershipOrder): void {
    const { mirror, links, makeLink } = this.#options;
    if (this.#isEnded || mirror.isFailing) return;
    this.#epoch = order.epoch;
    for (const [slot, target] of order.targets.entries()) {
      links[slot] ??= makeLink(slot);
      links[slot].aim({ ...target, epoch: order.epoch });
    }
    if (order.hasLoss) mirror.noteLoss();
    mirror.localMask = order.local;
    mirror.membership(order.inSync, order.rebuilding, order.rejoined);
    const nowMs = performance.now();
    for (const [slot, link] of links.entries()) {
      if (((order.inSync | order.rebuilding) & (1 << slot)) !== 0) link.start(mirror, nowMs);
    }
    this.#saySettled();
  }

  #submit(row: number): void {
    for (const link of this.#options.links) link.submitMark(row);
  }

  #saySettled(): void {
    if (this.#options.mirror.isSettled) this.#options.say({ type: 'settled', epoch: this.#epoch });
  }
}
