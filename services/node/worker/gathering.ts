/**
 * How soon a connection is received from again. Each round through the kernel costs as much as several requests, most of it
 * the send of their replies: whoever answers a busy client request by request spends itself on that, and the client too. So
 * a connection with many requests open is left alone for some microseconds, until about half of them have come.
 *
 *   receive ── requests ──▶ disk ──▶ replies ── pause ──▶ receive      pause: at most PAUSE_US_MAX after the last receive
 *
 * The other half are answered and keep the client busy meanwhile. How many a client has open is seen by a longer pause now and
 * then; one that has few is not left alone otherwise.
 */
import type { NodeIo } from './node-io.ts';

/** The longest pause. Added to a network's round trip only if the client has that many requests open. */
export const PAUSE_US_MAX = 64;
const PAUSE_STEP_US = 4;
/** Fewer open requests are not gathered: their client may have nothing left to do before the pause is over. */
export const OPEN_MIN = 8;
/** After this long a client has sent all it will send without an answer, or enough. */
const PROBE_US = 200;
const PROBE_RECEIVES = 4096;
/** The first comes sooner. */
const FIRST_PROBE_RECEIVES = 64;

export class Gathering {
  readonly #io: NodeIo;
  /** Per connection: when it was received from last, and when it may be again; microseconds of `io.clock`. */
  readonly #receivedUs: Float64Array;
  readonly #dueUs: Float64Array;
  /** Requests since then. */
  readonly #requests: Uint16Array;
  /** Requests that the client has open when it waits for nothing but answers. */
  readonly #open: Uint16Array;
  readonly #pauseUs: Uint8Array;
  /** Receives since the last probe; and whether this pause is one. */
  readonly #receives: Uint16Array;
  readonly #probing: Uint8Array;
  /** The connections in a pause. */
  readonly #paused: Int32Array;
  readonly #isPaused: Uint8Array;
  #pausedCount = 0;

  constructor(io: NodeIo, connectionsMax: number) {
    this.#io = io;
    this.#receivedUs = new Float64Array(connectionsMax);
    this.#dueUs = new Float64Array(connectionsMax);
    this.#requests = new Uint16Array(connectionsMax);
    this.#open = new Uint16Array(connectionsMax);
    this.#pauseUs = new Uint8Array(connectionsMax);
    this.#receives = new Uint16Array(connectionsMax);
    this.#probing = new Uint8Array(connectionsMax);
    this.#paused = new Int32Array(connectionsMax);
    this.#isPaused = new Uint8Array(connectionsMax);
  }

  /** A connection's transmission begins. */
  begin(connection: number): void {
    this.#requests[connection] = 0;
    this.#open[connection] = 0;
    this.#pauseUs[connection] = 0;
    this.#receives[connection] = PROBE_RECEIVES - FIRST_PROBE_RECEIVES;
    this.#probing[connection] = 0;
    this.#dueUs[connection] = 0;
  }

  /** A request of the connection was taken. */
  count(connection: number): void {
    this.#requests[connection]!++;
  }

  /** Everything received is parsed: true if more may be received now. Else the connection is named by `release` in time. */
  mayReceive(connection: number): boolean {
    const nowUs = this.#io.clock[0]!;
    if (this.#isPaused[connection] !== 0) return false;
    if (this.#requests[connection] !== 0) {
      this.#dueUs[connection] = this.#receivedUs[connection]! + this.#nextPause(connection);
      this.#requests[connection] = 0;
    }
    if (this.#dueUs[connection]! > nowUs) {
      this.#isPaused[connection] = 1;
      this.#paused[this.#pausedCount++] = connection;
      return false;
    }
    this.#receivedUs[connection] = nowUs;
    return true;
  }

  /** Ends the pauses that are over, in the order they began. */
  release(resume: (connection: number) => void): void {
    const nowUs = this.#io.clock[0]!;
    let kept = 0;
    for (let i = 0; i < this.#pausedCount; i++) {
      const connection = this.#paused[i]!;
      if (this.#dueUs[connection]! > nowUs) {
        this.#paused[kept++] = connection;
        continue;
      }
      this.#isPaused[connection] = 0;
      resume(connection);
    }
    this.#pausedCount = kept;
  }

  /** Microseconds until the next pause is over, at least 1; -1: there is none. */
  get leftUs(): number {
    if (this.#pausedCount === 0) return -1;
    let dueUs = this.#dueUs[this.#paused[0]!]!;
    for (let i = 1; i < this.#pausedCount; i++) dueUs = Math.min(dueUs, this.#dueUs[this.#paused[i]!]!);
    return Math.max(1, Math.ceil(dueUs - this.#io.clock[0]!)) | 0;
  }

  /** The pause after a receive that brought `#requests`. */
  #nextPause(connection: number): number {
    const requests = this.#requests[connection]!;
    if (this.#probing[connection] !== 0) {
      this.#probing[connection] = 0;
      this.#open[connection] = requests;
    } else if (requests > this.#open[connection]!) {
      this.#open[connection] = requests;
    }
    if (++this.#receives[connection]! === PROBE_RECEIVES) {
      this.#receives[connection] = 0;
      this.#probing[connection] = 1;
      return PROBE_US;
    }
    const pauseUs = this.#pauseUs[connection]!;
    const open = this.#open[connection]!;
    const enough = open < OPEN_MIN || requests * 2 >= open;
    const nextUs = enough ? pauseUs >> 1 : Math.min(pauseUs + PAUSE_STEP_US, PAUSE_US_MAX);
    this.#pauseUs[connection] = nextUs;
    return nextUs;
  }
}
