/**
 * Which requests of a queue are in flight together: none that overlap, unless both read; among overlapping ones, the order
 * stays that of their arrival. With several queues the others' requests count as well (ranges.ts). A flush overlaps nothing.
 *
 * So replicas cannot differ in the order of writes; and until a write is complete, when replicas may hold the old or the new
 * content, no read shows what may be gone again when another replica answers, or the writer dies.
 */
import type { SharedRanges } from './ranges.ts';
import { Operation, type RequestTable } from './request.ts';

export interface OrderHost {
  /** Nothing holds the request back: it is in flight from now on, until `end`. */
  begin(tag: number): void;
}

export class RequestOrder {
  /** Per tag: 1 while it is in flight. */
  readonly inFlight: Uint8Array;
  readonly #requests: RequestTable;
  readonly #host: OrderHost;
  /** The requests of the device's other queues; null if there are none. */
  readonly #ranges: SharedRanges | null;
  /** Tags held back by an overlapping request, and writes while they are held, oldest first. */
  readonly #waiting: Uint16Array;
  #waitingCount = 0;
  /** Requests that write, in flight or waiting. */
  #writeCount = 0;
  #isHolding = false;
  #isOpen = false;
  /** `release` is under way, and has to look again: a request that it began ended at once. */
  #isReleasing = false;
  #releaseAgain = false;
  /** Writes that waited for an overlapping request. */
  overlapCount = 0;

  constructor(options: { requests: RequestTable; host: OrderHost; ranges: SharedRanges | null }) {
    this.#requests = options.requests;
    this.#host = options.host;
    this.#ranges = options.ranges;
    const { depth } = options.requests;
    this.inFlight = new Uint8Array(depth);
    this.#waiting = new Uint16Array(depth);
  }

  /** Takes on the request in row `tag`: it begins now, or when nothing holds it back any more. */
  take(tag: number): void {
    const isRead = this.#requests.operation[tag] === Operation.READ;
    if (!isRead) this.#writeCount++;
    if (this.#isOpen) {
      this.#begin(tag);
    } else if (isRead) {
      const waits = this.#writeCount > 0 && this.#overlapsEarlier(tag, this.#waitingCount);
      if (waits || !this.#claimed(tag)) this.#waiting[this.#waitingCount++] = tag;
      else this.#begin(tag);
    } else if (this.#isHolding) {
      this.#waiting[this.#waitingCount++] = tag;
    } else if (this.#overlapsEarlier(tag, this.#waitingCount) || !this.#claimed(tag)) {
      this.overlapCount++;
      this.#waiting[this.#waitingCount++] = tag;
    } else {
      this.#begin(tag);
    }
  }

  /** A request in flight has ended. Those that it held back begin with `release`. */
  end(tag: number): void {
    this.inFlight[tag] = 0;
    if (this.#requests.operation[tag] !== Operation.READ) this.#writeCount--;
    this.#ranges?.release(tag);
  }

  /** Begins what nothing holds back any more. */
  release(): void {
    if (this.#waitingCount === 0) return;
    if (this.#isReleasing) {
      this.#releaseAgain = true;
      return;
    }
    this.#isReleasing = true;
    do {
      this.#releaseAgain = false;
      const count = this.#waitingCount;
      let kept = 0;
      for (let i = 0; i < count; i++) {
        const tag = this.#waiting[i]!;
        if (this.#mayBegin(tag, kept)) this.#begin(tag);
        else this.#waiting[kept++] = tag;
      }
      this.#waitingCount = kept;
    } while (this.#releaseAgain);
    this.#isReleasing = false;
  }

  /** From now on no write begins; reads do, also where one waits. */
  hold(): void {
    this.#isHolding = true;
    // Other queues do not wait for what is held.
    for (let i = 0; i < this.#waitingCount; i++) {
      const tag = this.#waiting[i]!;
      if (this.#requests.operation[tag] !== Operation.READ) this.#ranges?.release(tag);
    }
  }

  unhold(): void {
    this.#isHolding = false;
    this.release();
  }

  /** From now on what comes begins at once, and other queues count no more: the host lets everything fail. */
  open(): void {
    this.#isOpen = true;
    this.release();
  }

  #begin(tag: number): void {
    this.inFlight[tag] = 1;
    this.#host.begin(tag);
  }

  #mayBegin(tag: number, waitingCount: number): boolean {
    if (this.#overlapsEarlier(tag, waitingCount)) return false;
    if (this.#isOpen) return true;
    if (this.#isHolding && this.#requests.operation[tag] !== Operation.READ) return false;
    return this.#claimed(tag);
  }

  /** Whether no other queue has something in flight that this request may not be in flight with. */
  #claimed(tag: number): boolean {
    const { operation, offsetBytes, lengthBytes } = this.#requests;
    if (this.#ranges === null || operation[tag] === Operation.FLUSH) return true;
    const isWrite = operation[tag] !== Operation.READ;
    return this.#ranges.claim(tag, offsetBytes[tag]!, lengthBytes[tag]!, isWrite);
  }

  /** Whether a request may not be in flight with one that is, or with one of the first `waitingCount` that wait. */
  #overlapsEarlier(tag: number, waitingCount: number): boolean {
    if (this.#requests.operation[tag] === Operation.FLUSH) return false;
    for (let other = 0; other < this.inFlight.length; other++) {
      if (other !== tag && this.inFlight[other] === 1 && this.#overlap(tag, other)) return true;
    }
    // Held writes may wait for long.
    if (this.#isHolding && this.#requests.operation[tag] === Operation.READ) return false;
    for (let i = 0; i < waitingCount; i++) {
      if (this.#overlap(tag, this.#waiting[i]!)) return true;
    }
    return false;
  }

  #overlap(a: number, b: number): boolean {
    const { operation, offsetBytes, lengthBytes } = this.#requests;
    if (operation[b] === Operation.FLUSH) return false;
    if (operation[a] === Operation.READ && operation[b] === Operation.READ) return false;
    return (
      offsetBytes[a]! < offsetBytes[b]! + lengthBytes[b]! &&
      offsetBytes[b]! < offsetBytes[a]! + lengthBytes[a]!
    );
  }
}
