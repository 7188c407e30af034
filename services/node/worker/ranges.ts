/**
 * A slot's range of blocks to itself, before it writes: overlapping writes are over first (write-order.ts), then its regions are
 * marked on the disk (integrity.ts).
 *
 *   acquire ─▶ rangeOrdered ─▶ marked ─▶ rangeArmed ─▶ … ─▶ release
 *       └────▶ dropped: its connection closes      └─▶ rangeFailed: the marks cannot be written
 */
import { Stat } from '../data/stats.ts';
import { NO_SLOT, SlotQueue, type Slots } from './slots.ts';
import type { Volume } from './volume.ts';

export interface RangeHost {
  volumeOf(slot: number): Volume;
  /** The range is the slot's own. False: it needs no marks, or was given back already. */
  rangeOrdered(slot: number, volume: Volume): boolean;
  /** Its regions are marked on the disk too: it may write. */
  rangeArmed(slot: number): void;
  /** Its regions could not be marked; the range is still its own. */
  rangeFailed(slot: number, errno: number): void;
  /** Its connection closes while it waits; it has no range. */
  rangeDropped(slot: number): void;
  /** A page of the volume's region map has changed: it must become durable. */
  regionsChanged(volume: Volume, page: number): void;
}

export class Ranges {
  readonly #slots: Slots;
  readonly #host: RangeHost;
  readonly #stats: Float64Array;
  readonly #granted = new SlotQueue();
  readonly #dropped = new SlotQueue();
  readonly #waiting = new SlotQueue();
  /** The volume whose regions are being marked. */
  #marking: Volume | null = null;
  readonly #pageChanged = (page: number): void => this.#host.regionsChanged(this.#marking!, page);

  constructor(slots: Slots, host: RangeHost, stats: Float64Array) {
    this.#slots = slots;
    this.#host = host;
    this.#stats = stats;
  }

  /** Asks for blocks `start` to before `end`. The host hears of it, perhaps before this returns. */
  acquire(slot: number, start: number, end: number): void {
    this.#slots.rangeStart[slot] = start;
    this.#slots.rangeEnd[slot] = end;
    if (this.#host.volumeOf(slot).order.acquire(slot)) this.#begin(slot);
    else this.#count(Stat.overlapWaits);
  }

  /** Whether the slot has a range to itself. */
  has(slot: number): boolean {
    return this.#slots.orderIndex[slot] !== -1;
  }

  /** Gives the range back; `startGranted` lets those begin that waited for it. */
  release(slot: number): void {
    this.#host.volumeOf(slot).order.release(slot, this.#granted);
  }

  startGranted(): void {
    for (;;) {
      const slot = this.#granted.shift(this.#slots);
      if (slot === NO_SLOT) return;
      this.#begin(slot);
    }
  }

  /** A page of region entries is durable, or failed with an errno: writes that waited for it begin, or fail. */
  committed(volume: Volume, startBlock: number, endBlock: number, errno: number): void {
    const { integrity } = volume;
    const slots = this.#slots;
    if (integrity.waiting.isEmpty) return;
    this.#waiting.head = integrity.waiting.head;
    this.#waiting.tail = integrity.waiting.tail;
    integrity.waiting.clear();
    for (;;) {
      const slot = this.#waiting.shift(slots);
      if (slot === NO_SLOT) return;
      const start = slots.rangeStart[slot]!;
      const end = slots.rangeEnd[slot]!;
      if (integrity.isArmed(start, end)) this.#host.rangeArmed(slot);
      else if (errno !== 0 && start < endBlock && end > startBlock) this.#host.rangeFailed(slot, errno);
      else integrity.waiting.push(slots, slot);
    }
  }

  /** Ends a hold of the volume's order: what waited begins. */
  unhold(volume: Volume): void {
    volume.order.unhold(this.#granted);
    this.startGranted();
  }

  /** Forgets what waits for other writes and belongs to this connection. */
  drop(volume: Volume, connection: number): void {
    volume.order.drop(connection, this.#dropped, this.#granted);
    for (;;) {
      const slot = this.#dropped.shift(this.#slots);
      if (slot === NO_SLOT) break;
      this.#host.rangeDropped(slot);
    }
    this.startGranted();
  }

  #begin(slot: number): void {
    const slots = this.#slots;
    const volume = this.#host.volumeOf(slot);
    if (!this.#host.rangeOrdered(slot, volume)) return;
    const { integrity } = volume;
    const start = slots.rangeStart[slot]!;
    const end = slots.rangeEnd[slot]!;
    if (integrity.begin(start, end)) {
      this.#host.rangeArmed(slot);
      return;
    }
    this.#count(Stat.regionWaits);
    this.#marking = volume;
    integrity.mark(start, end, this.#pageChanged);
    integrity.waiting.push(slots, slot);
  }

  #count(stat: number): void {
    this.#stats[stat] = this.#stats[stat]! + 1;
  }
}
