/**
 * What the application saw, and whether one writer's disk could have shown it. Per unit: a register whose values are the
 * numbers of the writes, each written once, so that linearizability is decided by the zones of the values (Gibbons and
 * Korach, "Testing shared memories"): a value's zone is from the first end to the last start of its write and reads.
 *
 * A loss (the last in-sync replica lost power) may take what was acknowledged and not flushed: the history goes on from
 * any content that no flushed write had replaced.
 */
import { Violation } from './world.ts';

interface Write {
  readonly id: number;
  readonly units: readonly number[];
  readonly generation: number;
  readonly start: number;
  /** When it was acknowledged; Infinity while it is not known to have taken effect. */
  end: number;
  isAcknowledged: boolean;
}

interface Read {
  readonly unit: number;
  readonly value: number;
  readonly start: number;
  readonly end: number;
}

interface Flush {
  readonly generation: number;
  readonly start: number;
  readonly end: number;
  readonly isDone: boolean;
}

interface Zone {
  readonly value: number;
  /** The first end of an operation on the value, and the last start. */
  readonly firstEnd: number;
  readonly lastStart: number;
}

export class History {
  readonly #writes = new Map<number, Write>();
  readonly #reads: Read[] = [];
  readonly #flushes: Flush[] = [];
  readonly #losses: number[] = [];
  /** Generations whose device was taken away, and when: what they say later does not count. */
  readonly #retired = new Map<number, number>();

  get counts(): {
    readonly writes: number;
    readonly reads: number;
    readonly flushes: number;
    readonly losses: number;
  } {
    const acknowledged = [...this.#writes.values()].filter(({ isAcknowledged }) => isAcknowledged);
    return {
      writes: acknowledged.length,
      reads: this.#reads.length,
      flushes: this.#flushes.filter(({ isDone }) => isDone).length,
      losses: this.#losses.length,
    };
  }

  begin(write: Omit<Write, 'end' | 'isAcknowledged'>): void {
    this.#writes.set(write.id, { ...write, end: Number.POSITIVE_INFINITY, isAcknowledged: false });
  }

  acknowledge(id: number, now: number): void {
    const write = this.#writes.get(id)!;
    if (this.#isRetired(write.generation, now)) return;
    write.isAcknowledged = true;
    write.end = now;
  }

  read(
    generation: number,
    units: readonly number[],
    values: readonly number[],
    start: number,
    now: number,
  ): void {
    for (const [i, unit] of units.entries()) {
      const value = values[i]!;
      const write = this.#writes.get(value);
      if (value !== 0 && (write === undefined || !write.units.includes(unit))) {
        throw new Violation(`unit ${unit} was read as ${value}, which was never written there`);
      }
      if (!this.#isRetired(generation, now)) this.#reads.push({ unit, value, start, end: now });
    }
  }

  flush(generation: number, isDone: boolean, start: number, now: number): void {
    if (!this.#isRetired(generation, now)) this.#flushes.push({ generation, isDone, start, end: now });
  }

  /** The volume was taken from this generation. */
  retire(generation: number, now: number): void {
    if (!this.#retired.has(generation)) this.#retired.set(generation, now);
  }

  /** A new writer begins: what earlier ones had in flight has taken effect by now, or never will. */
  admit(generation: number, now: number): void {
    for (const write of this.#writes.values()) {
      if (write.generation < generation && write.end > now) write.end = now;
    }
  }

  /** The writer hears of a loss: nothing that it hears later is of before. */
  loss(now: number): void {
    this.#losses.push(now);
  }

  /** Throws a Violation. */
  check(unitCount: number): void {
    for (let unit = 0; unit < unitCount; unit++) this.#checkUnit(unit);
  }

  #checkUnit(unit: number): void {
    const writes = [...this.#writes.values()].filter(({ units }) => units.includes(unit));
    const reads = this.#reads.filter((read) => read.unit === unit);
    const bounds = [...this.#losses, Number.POSITIVE_INFINITY];
    let from = Number.NEGATIVE_INFINITY;
    let candidates = new Set([0]);
    for (const until of bounds) {
      const inside = reads.filter(({ start, end }) => start >= from && end <= until);
      const own = writes.filter(({ start, end }) => start < until && end > from);
      checkSegment(unit, inside, own, candidates, until);
      candidates = this.#survivors(candidates, writes, from, until);
      from = until;
    }
  }

  /** What a unit may hold after a loss at `until`. */
  #survivors(
    before: ReadonlySet<number>,
    writes: readonly Write[],
    from: number,
    until: number,
  ): Set<number> {
    const own = writes.filter(({ start, end }) => start < until && end > from);
    const flushed = own.filter(
      ({ end, generation, isAcknowledged }) =>
        isAcknowledged && this.#flushes.some((f) => end <= f.start && this.#counts(f, generation, until)),
    );
    const survivors = new Set<number>();
    if (flushed.length === 0) for (const value of before) survivors.add(value);
    for (const { id, end } of own) if (!flushed.some(({ start }) => end < start)) survivors.add(id);
    return survivors;
  }

  /** Whether a flush says that a write of this generation, of before a loss, is safe. */
  #counts(flush: Flush, generation: number, loss: number): boolean {
    if (!flush.isDone) return false;
    if (flush.start < loss) return true;
    // One that begins later says so, too, unless the loss was told by one that failed.
    const isTold = this.#flushes.some((f) => !f.isDone && f.end >= loss && f.end <= flush.end);
    return flush.generation === generation && !isTold;
  }

  #isRetired(generation: number, now: number): boolean {
    return now > (this.#retired.get(generation) ?? Number.POSITIVE_INFINITY);
  }
}

function checkSegment(
  unit: number,
  reads: readonly Read[],
  writes: readonly Write[],
  candidates: ReadonlySet<number>,
  until: number,
): void {
  const written = new Map(writes.map((write) => [write.id, write]));
  const old = new Set(reads.map(({ value }) => value).filter((value) => !written.has(value)));
  for (const value of old) {
    if (!candidates.has(value))
      throw new Violation(`unit ${unit} was read as ${value}, which was replaced for good`);
  }
  if (old.size > 1)
    throw new Violation(`unit ${unit} was read as each of ${[...old].join(', ')}, all of before a loss`);
  const zones: Zone[] = [];
  for (const value of new Set([...old, ...written.keys()])) {
    const own = reads.filter((read) => read.value === value);
    const write = written.get(value);
    if (own.length === 0 && (write === undefined || !write.isAcknowledged || write.end > until)) continue;
    const start = write?.start ?? Number.NEGATIVE_INFINITY;
    const end = write?.end ?? Number.NEGATIVE_INFINITY;
    if (own.some((read) => read.end < start)) {
      throw new Violation(`unit ${unit} was read as ${value} before that was written`);
    }
    zones.push({
      value,
      firstEnd: own.reduce((least, read) => Math.min(least, read.end), end),
      lastStart: own.reduce((most, read) => Math.max(most, read.start), start),
    });
  }
  for (const a of zones) {
    if (a.firstEnd >= a.lastStart) continue;
    for (const b of zones) {
      if (a === b) continue;
      // Two forward zones that overlap, or a backward one inside a forward one.
      const isBroken = a.firstEnd < b.lastStart && b.firstEnd < a.lastStart;
      if (isBroken) {
        throw new Violation(
          `unit ${unit} holds ${a.value} from ${a.firstEnd.toFixed(2)} to ${a.lastStart.toFixed(2)}, and ${b.value} in ` +
            `between (${Math.min(b.firstEnd, b.lastStart).toFixed(2)} to ${Math.max(b.firstEnd, b.lastStart).toFixed(2)})`,
        );
      }
    }
  }
}
