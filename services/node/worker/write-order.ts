/**
 * Overlapping writes of one volume take effect in the order of their arrival: a write whose range overlaps one that is
 * at work, or one that arrived earlier and waits, waits for it. Ranges are whole blocks, so that a read-modify-write
 * never loses its neighbour's bytes.
 */
import { NO_SLOT, SlotQueue, type Slots } from './slots.ts';

export class WriteOrder {
  readonly #slots: Slots;
  #active = new Int32Array(64);
  #activeCount = 0;
  readonly #waiting = new SlotQueue();
  #waitingCount = 0;
  #held = false;

  constructor(slots: Slots) {
    this.#slots = slots;
  }

  get activeCount(): number {
    return this.#activeCount;
  }

  get waitingCount(): number {
    return this.#waitingCount;
  }

  /** Whether a range that is at work overlaps this one. */
  overlaps(start: number, end: number): boolean {
    const { rangeStart, rangeEnd } = this.#slots;
    for (let i = 0; i < this.#activeCount; i++) {
      const other = this.#active[i]!;
      if (rangeStart[other]! < end && rangeEnd[other]! > start) return true;
    }
    return false;
  }

  /** From now on everything new waits. */
  hold(): void {
    this.#held = true;
  }

  /** Undoes `hold`; adds what may go now to `granted`. */
  unhold(granted: SlotQueue): void {
    this.#held = false;
    this.#grant(granted);
  }

  /** True: the slot's range (rangeStart, rangeEnd) is its own until `release`. False: it waits in the queue. */
  acquire(slot: number): boolean {
    if (this.#held || this.#overlapsActive(slot) || (this.#waitingCount > 0 && this.#overlapsWaiting(slot))) {
      this.#waiting.push(this.#slots, slot);
      this.#waitingCount++;
      return false;
    }
    this.#activate(slot);
    return true;
  }

  /** Gives the range back, and adds every waiting slot that may go now to `granted`, in order. */
  release(slot: number, granted: SlotQueue): void {
    const index = this.#slots.orderIndex[slot]!;
    const last = this.#active[--this.#activeCount]!;
    this.#active[index] = last;
    this.#slots.orderIndex[last] = index;
    this.#slots.orderIndex[slot] = -1;
    if (this.#waitingCount > 0) this.#grant(granted);
  }

  /** Takes every waiting slot of one connection out, into `dropped`; then what they held up may go, into `granted`. */
  drop(connection: number, dropped: SlotQueue, granted: SlotQueue): void {
    const slots = this.#slots;
    let slot = this.#waiting.head;
    this.#waiting.clear();
    while (slot !== NO_SLOT) {
      const next = slots.next[slot]!;
      if (slots.connection[slot] === connection) {
        this.#waitingCount--;
        dropped.push(slots, slot);
      } else {
        this.#waiting.push(slots, slot);
      }
      slot = next;
    }
    this.#grant(granted);
  }

  #activate(slot: number): void {
    if (this.#activeCount === this.#active.length) {
      const larger = new Int32Array(this.#active.length * 2);
      larger.set(this.#active);
      this.#active = larger;
    }
    this.#active[this.#activeCount] = slot;
    this.#slots.orderIndex[slot] = this.#activeCount++;
  }

  #grant(granted: SlotQueue): void {
    if (this.#held) return;
    const slots = this.#slots;
    let slot = this.#waiting.head;
    this.#waiting.clear();
    while (slot !== NO_SLOT) {
      const next = slots.next[slot]!;
      // The queue now holds exactly the earlier ones that go on waiting.
      if (this.#overlapsActive(slot) || this.#overlapsWaiting(slot)) {
        this.#waiting.push(slots, slot);
      } else {
        this.#waitingCount--;
        this.#activate(slot);
        granted.push(slots, slot);
      }
      slot = next;
    }
  }

  #overlapsActive(slot: number): boolean {
    return this.overlaps(this.#slots.rangeStart[slot]!, this.#slots.rangeEnd[slot]!);
  }

  #overlapsWaiting(slot: number): boolean {
    const { rangeStart, rangeEnd, next } = this.#slots;
    const start = rangeStart[slot]!;
    const end = rangeEnd[slot]!;
    for (let other = this.#waiting.head; other !== NO_SLOT; other = next[other]!) {
      if (rangeStart[other]! < end && rangeEnd[other]! > start) return true;
    }
    return false;
  }
}
