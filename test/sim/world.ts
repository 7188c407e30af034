/**
 * Time, chance and order of a simulation: an event queue, one seeded source of randomness, and a digest of everything that
 * happened, by which a replay is known to be one.
 */
import { Random } from '../fault/random.ts';

interface Event {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
  isCancelled: boolean;
}

export type Timer = { isCancelled: boolean };

/** Something that the protocol promises did not hold. */
export class Violation extends Error {
  override readonly name = 'Violation';
}

export class World {
  /** Milliseconds of the simulation. */
  now = 0;
  readonly random: Random;
  readonly trace: string[] = [];
  readonly isTraced: boolean;
  eventCount = 0;
  #digest = 0x811c9dc5;
  #order = 0;
  /** A binary heap by time, then order. */
  readonly #heap: Event[] = [];
  /** A promise was settled: what waits for it runs before the next event. */
  #hasPromises = false;

  constructor(seed: number, options: { readonly traced: boolean }) {
    this.random = new Random(seed);
    this.isTraced = options.traced;
  }

  get digest(): number {
    return this.#digest >>> 0;
  }

  after(delayMs: number, run: () => void): Timer {
    const event: Event = { at: this.now + delayMs, order: this.#order++, run, isCancelled: false };
    this.#push(event);
    return event;
  }

  /** Settles promises: what waits for them runs before the next event. */
  touch(): void {
    this.#hasPromises = true;
  }

  /** Notes what happens; `text` is only asked for when somebody looks. */
  note(kind: number, value: number, text: () => string): void {
    this.#digest = Math.imul(this.#digest ^ (kind + value * 31 + Math.floor(this.now * 1000)), 0x01000193);
    if (this.isTraced) this.trace.push(`${this.now.toFixed(2).padStart(10)}  ${text()}`);
  }

  /** A whole number from `low` to `high`. */
  between(low: number, high: number): number {
    return low + this.random.below(high - low + 1);
  }

  /** A time, mostly short, sometimes long. */
  delay(typicalMs: number): number {
    const chance = this.random.below(1000);
    const part = (this.random.below(1000) + 1) / 1000;
    if (chance < 5) return typicalMs * 200 * part;
    if (chance < 50) return typicalMs * 20 * part;
    return typicalMs * (0.2 + part);
  }

  /** Runs until the condition holds after an event; false when time is up first, or nothing happens any more. */
  async runUntil(untilMs: number, condition: () => boolean): Promise<boolean> {
    for (;;) {
      if (this.#hasPromises) {
        this.#hasPromises = false;
        await new Promise((resolve) => setImmediate(resolve));
        continue;
      }
      if (condition()) return true;
      const event = this.#heap[0];
      if (event === undefined || event.at > untilMs) {
        this.now = untilMs;
        return false;
      }
      this.#pop();
      if (event.isCancelled) continue;
      this.now = event.at;
      this.eventCount++;
      event.run();
    }
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
