/**
 * The byte ranges of the requests in flight, shared by all queues of a device: what overlaps is never in flight together,
 * whichever queues it came from, except reads with reads. Needed with several queues only; within one, the mirror itself
 * knows.
 *
 *   Int32:    lock | per queue: rows of reads, rows of writes
 *   Float64:  last ticket | per queue, reads and writes apart, per row: begin, end, ticket (0: in flight)
 *
 * Invariants:
 * - Rows are read and written under the lock. A queue writes its own rows only, and keeps them dense.
 * - A request waits for overlapping ones in flight and for overlapping ones that waited before it (smaller ticket): none
 *   is passed over for ever, and there is no cycle.
 * - Whoever removes a row wakes the queues that have a waiting row over it, so no wake is lost.
 * - A read never looks at reads: while nobody writes it costs two turns of the lock, however much is in flight.
 */

const UNLOCKED = 0;
const LOCKED = 1;
/** Locked, and somebody sleeps until it is not. */
const CONTENDED = 2;
const LOCK_AT = 0;
const COUNTS_AT = 1;
const ROW_NUMBERS = 3;
const IN_FLIGHT = 0;
const NO_ROW = -1;

/** Rows are in lists: two a queue. */
const List = { READS: 0, WRITES: 1 } as const;
const LISTS = 2;

function headerBytes(queueCount: number): number {
  return Math.ceil(((COUNTS_AT + LISTS * queueCount) * 4) / 8) * 8;
}

/** Memory for `queueCount` queues of `queueDepth` tags each, all free. */
export function createRanges(queueCount: number, queueDepth: number): SharedArrayBuffer {
  const rows = LISTS * queueCount * queueDepth;
  return new SharedArrayBuffer(headerBytes(queueCount) + (1 + rows * ROW_NUMBERS) * 8);
}

/** One queue's view of the shared ranges. */
export class SharedRanges {
  readonly #control: Int32Array;
  readonly #ticket: Float64Array;
  readonly #rows: Float64Array;
  readonly #queueId: number;
  readonly #queueCount: number;
  readonly #depth: number;
  readonly #wake: (queueId: number) => void;
  /** Own rows: by tag, its row and list; by row, its tag, for each list. */
  readonly #rowOfTag: Int32Array;
  readonly #listOfTag: Uint8Array;
  readonly #tagOfRow: Uint16Array;
  /** By queue; scratch of `release`. */
  readonly #toWake: Uint8Array;

  /** @param options.wake makes another queue look at its waiting requests again; called without the lock */
  constructor(options: {
    shared: SharedArrayBuffer;
    queueId: number;
    queueCount: number;
    queueDepth: number;
    wake: (queueId: number) => void;
  }) {
    const { shared, queueCount } = options;
    const header = headerBytes(queueCount);
    this.#control = new Int32Array(shared, 0, COUNTS_AT + LISTS * queueCount);
    this.#ticket = new Float64Array(shared, header, 1);
    this.#rows = new Float64Array(shared, header + 8);
    this.#queueId = options.queueId;
    this.#queueCount = queueCount;
    this.#depth = options.queueDepth;
    this.#wake = options.wake;
    this.#rowOfTag = new Int32Array(options.queueDepth).fill(NO_ROW);
    this.#listOfTag = new Uint8Array(options.queueDepth);
    this.#tagOfRow = new Uint16Array(LISTS * options.queueDepth);
    this.#toWake = new Uint8Array(queueCount);
  }

  /**
   * Takes the range for a request; false if it has to wait for another queue's. It is then asked again after each wake, and
   * keeps its place meanwhile.
   */
  claim(tag: number, offsetBytes: number, lengthBytes: number, isWrite: boolean): boolean {
    const list = isWrite ? List.WRITES : List.READS;
    this.#lock();
    let row = this.#rowOfTag[tag]!;
    if (row === NO_ROW) row = this.#add(tag, list, offsetBytes, offsetBytes + lengthBytes);
    const at = this.#at(this.#queueId, list, row);
    const free = !this.#blocked(at, List.WRITES) && !(isWrite && this.#blocked(at, List.READS));
    if (free) this.#rows[at + 2] = IN_FLIGHT;
    this.#unlock();
    return free;
  }

  /** Gives the range back, held or waited for. A tag without one is no error. */
  release(tag: number): void {
    const row = this.#rowOfTag[tag]!;
    if (row === NO_ROW) return;
    this.#rowOfTag[tag] = NO_ROW;
    const list = this.#listOfTag[tag]!;
    this.#lock();
    const rows = this.#rows;
    const at = this.#at(this.#queueId, list, row);
    const begin = rows[at]!;
    const end = rows[at + 1]!;
    const last = --this.#control[COUNTS_AT + LISTS * this.#queueId + list]!;
    if (row !== last) {
      const lastAt = this.#at(this.#queueId, list, last);
      rows.copyWithin(at, lastAt, lastAt + ROW_NUMBERS);
      const moved = this.#tagOfRow[list * this.#depth + last]!;
      this.#tagOfRow[list * this.#depth + row] = moved;
      this.#rowOfTag[moved] = row;
    }
    this.#toWake.fill(0);
    this.#findWaiting(begin, end, List.WRITES);
    if (list === List.WRITES) this.#findWaiting(begin, end, List.READS);
    this.#unlock();
    for (let queueId = 0; queueId < this.#queueCount; queueId++) {
      if (this.#toWake[queueId] === 1) this.#wake(queueId);
    }
  }

  #at(queueId: number, list: number, row: number): number {
    return ((LISTS * queueId + list) * this.#depth + row) * ROW_NUMBERS;
  }

  #add(tag: number, list: number, begin: number, end: number): number {
    const row = this.#control[COUNTS_AT + LISTS * this.#queueId + list]!++;
    const at = this.#at(this.#queueId, list, row);
    this.#rows[at] = begin;
    this.#rows[at + 1] = end;
    this.#rows[at + 2] = ++this.#ticket[0]!;
    this.#rowOfTag[tag] = row;
    this.#listOfTag[tag] = list;
    this.#tagOfRow[list * this.#depth + row] = tag;
    return row;
  }

  /** Whether the row `own` has to wait for one of this list of another queue. */
  #blocked(own: number, list: number): boolean {
    const rows = this.#rows;
    const begin = rows[own]!;
    const end = rows[own + 1]!;
    const ticket = rows[own + 2]!;
    for (let queueId = 0; queueId < this.#queueCount; queueId++) {
      if (queueId === this.#queueId) continue;
      let at = this.#at(queueId, list, 0);
      const stop = at + this.#control[COUNTS_AT + LISTS * queueId + list]! * ROW_NUMBERS;
      for (; at < stop; at += ROW_NUMBERS) {
        if (rows[at]! < end && begin < rows[at + 1]! && rows[at + 2]! < ticket) return true;
      }
    }
    return false;
  }

  /** Marks the other queues that have a waiting row of this list over the range. */
  #findWaiting(begin: number, end: number, list: number): void {
    const rows = this.#rows;
    for (let queueId = 0; queueId < this.#queueCount; queueId++) {
      if (queueId === this.#queueId) continue;
      let at = this.#at(queueId, list, 0);
      const stop = at + this.#control[COUNTS_AT + LISTS * queueId + list]! * ROW_NUMBERS;
      for (; at < stop; at += ROW_NUMBERS) {
        if (rows[at + 2]! === IN_FLIGHT || rows[at]! >= end || begin >= rows[at + 1]!) continue;
        this.#toWake[queueId] = 1;
        break;
      }
    }
  }

  /** A mutex after Drepper, "Futexes are tricky", mutex2; Atomics.wait is the futex. */
  #lock(): void {
    const control = this.#control;
    let seen = Atomics.compareExchange(control, LOCK_AT, UNLOCKED, LOCKED);
    while (seen !== UNLOCKED) {
      if (seen === CONTENDED || Atomics.compareExchange(control, LOCK_AT, LOCKED, CONTENDED) !== UNLOCKED) {
        Atomics.wait(control, LOCK_AT, CONTENDED);
      }
      seen = Atomics.compareExchange(control, LOCK_AT, UNLOCKED, CONTENDED);
    }
  }

  #unlock(): void {
    if (Atomics.sub(this.#control, LOCK_AT, 1) === LOCKED) return;
    Atomics.store(this.#control, LOCK_AT, UNLOCKED);
    Atomics.notify(this.#control, LOCK_AT, 1);
  }
}
