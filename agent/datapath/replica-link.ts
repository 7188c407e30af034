/**
 * The way to one replica: one connection for small reads, a few for large ones, one for everything else, up together, down
 * together, made again after a pause for as long as the replica is wanted.
 *
 *   start ─▶ connecting ─▶ up ─▶ draining ─▶ (pause) ─▶ connecting …        close ─▶ draining ─▶ nothing
 *
 * At a node all connections of one attempt are a session: it names the membership's epoch, this link and the attempt, and
 * ends the sessions of earlier attempts. Foreign servers get the bare name.
 */
import {
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  SIMPLE_REPLY_SIZE_BYTES,
} from '@blockwire/proto/nbd/constants.ts';
import { addSession } from '@blockwire/shared/export-name.ts';
import type { Connection, ConnectionOptions, ConnectionOwner } from './connection.ts';
import type { LatencyRecorder } from './latency.ts';
import type { MarkRows } from './mark-rows.ts';
import type { ReplicaTarget } from './messages.ts';
import type { Mirror, ReplicaLink } from './mirror.ts';
import { BatchConnection, DirectConnection, REPLIES_BYTES, SMALL_READS_BYTES } from './receive.ts';
import { Operation } from './request.ts';

/**
 * A connection for large reads takes one reply a trip through the ring: the payload can only be received once the header
 * told whose it is. Several of them bring several replies a trip.
 */
const DIRECT_CONNECTIONS = 4;
const RECONNECT_MS_MIN = 100;
const RECONNECT_MS_MAX = 2000;

export interface LinkOptions extends Omit<ConnectionOptions, 'owner'> {
  readonly replica: number;
  /** Names this link at its node. */
  readonly name: string;
  /** Attempts are counted on from here; higher than those of any earlier process. */
  readonly attemptsBefore: number;
  readonly marks: MarkRows;
  /** Bytes that the export must have at least. */
  readonly sizeBytes: number;
  readonly latency: LatencyRecorder;
  /** Told of every change: up, or down with the reason and the code of a node's refusal. */
  readonly onChange: (replica: number, up: boolean, reason: string, refusal: string | null) => void;
}

/** Where a replica is, and what its writer goes by. */
export interface LinkTarget extends ReplicaTarget {
  readonly epoch: number;
}

export class NbdReplicaLink implements ReplicaLink, ConnectionOwner {
  readonly #options: LinkOptions;
  /** Large reads. */
  readonly #direct: readonly Connection[];
  readonly #smallReads: Connection | null;
  readonly #write: Connection;
  readonly #all: readonly Connection[];
  #mirror: Mirror | null = null;
  #target: LinkTarget | null = null;
  #attempt: number;
  /** The epoch that the attempt under way, or the last one, named. */
  #attemptEpoch = 0;
  #connectMs = 0;
  #up = false;
  #wanted = false;
  /** Closed before it was up: nobody is told that it is down. */
  #silent = false;
  #reason = '';
  #refusal: string | null = null;
  #retryDelayMs = RECONNECT_MS_MIN;
  /** When to connect again; null: not yet known. */
  #retryAtMs: number | null = null;
  /** Since when a node has been about to install the membership that this link goes by; null: it is not. */
  #conflictSinceMs: number | null = null;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#attempt = options.attemptsBefore;
    const connection = { ...options, owner: this };
    this.#direct = Array.from({ length: DIRECT_CONNECTIONS }, () => new DirectConnection(connection));
    // Room for a whole reply behind part of another.
    const room = 2 * (options.ladder.smallBytesMax + SIMPLE_REPLY_SIZE_BYTES);
    this.#smallReads =
      options.ladder.smallBytesMax > 0
        ? new BatchConnection(connection, Math.max(SMALL_READS_BYTES, room))
        : null;
    this.#write = new BatchConnection(connection, REPLIES_BYTES);
    this.#all = [this.#write, ...(this.#smallReads === null ? [] : [this.#smallReads]), ...this.#direct];
  }

  /** Where to connect from the next attempt on. */
  aim(target: LinkTarget): void {
    if (this.#target !== null && this.#target.nodeId !== target.nodeId) this.#options.latency.reset();
    this.#target = target;
  }

  /** Connects to what it aims at, and again until it is closed; reports to `mirror`. */
  start(mirror: Mirror, nowMs: number): void {
    this.#mirror = mirror;
    if (this.#wanted) return;
    this.#wanted = true;
    this.#retryDelayMs = RECONNECT_MS_MIN;
    this.#conflictSinceMs = null;
    if (this.idle) this.#connect(nowMs);
    else this.#retryAtMs = nowMs;
  }

  get inFlightCount(): number {
    let count = 0;
    for (let i = 0; i < this.#all.length; i++) count += this.#all[i]!.inFlightCount;
    return count;
  }

  /** Whether nothing of this link is in the kernel. */
  get idle(): boolean {
    return this.#all.every(({ state }) => state === 'down');
  }

  submit(tag: number): void {
    this.#options.latency.begin(tag);
    const { requests, ladder } = this.#options;
    if (requests.operation[tag] !== Operation.READ) this.#write.submit(tag);
    else if (this.#smallReads !== null && requests.lengthBytes[tag]! <= ladder.smallBytesMax)
      this.#smallReads.submit(tag);
    else this.#leastLoaded().submit(tag);
  }

  close(): void {
    this.#wanted = false;
    if (this.idle) return;
    this.#silent = !this.#up;
    this.#failAll('the replica left the membership', null);
  }

  /** Sends MARK or CHECKPOINT behind what was submitted before; not while it is down, not to foreign servers. */
  submitMark(row: number): void {
    if (this.#up && this.#target!.isNode) this.#write.submitMark(row);
  }

  flush(): void {
    for (let i = 0; i < this.#all.length; i++) this.#all[i]!.flush();
  }

  tick(nowMs: number): void {
    for (const connection of this.#all) connection.tick(nowMs);
    if (!this.#wanted || !this.idle) return;
    this.#retryAtMs ??= nowMs + this.#retryDelayMs;
    if (nowMs >= this.#retryAtMs) this.#connect(nowMs);
  }

  connectionUp(connection: Connection): void {
    const wrong = this.#objection(connection);
    if (wrong !== null) {
      connection.fail(wrong);
      return;
    }
    if (this.#all.some(({ state }) => state !== 'up')) return;
    this.#up = true;
    this.#retryDelayMs = RECONNECT_MS_MIN;
    this.#conflictSinceMs = null;
    // Before any write: what this connection carries from now on was sent behind it.
    const { latest } = this.#options.marks;
    if (latest !== null) this.submitMark(latest);
    this.#options.onChange(this.#options.replica, true, '', null);
    this.#mirror?.linkUp(this.#options.replica);
  }

  connectionSilent(connection: Connection): void {
    // A mark that it has seen changes nothing there, and is answered at once.
    const { latest } = this.#options.marks;
    if (latest !== null && this.#target!.isNode) connection.submit(latest);
  }

  connectionFailed(_connection: Connection, reason: string, refusal: string | null): void {
    if (this.#reason === '') this.#reason = reason;
    this.#refusal ??= refusal;
    this.#failAll(reason, refusal);
  }

  connectionDown(): void {
    if (!this.idle) return;
    const wasUp = this.#up;
    this.#up = false;
    if (!wasUp && (this.#silent || this.#isEarly())) return;
    this.#retryDelayMs = Math.min(this.#retryDelayMs * 2, RECONNECT_MS_MAX);
    this.#options.onChange(this.#options.replica, false, this.#reason, this.#refusal);
    this.#mirror?.linkDown(this.#options.replica, this.#reason);
  }

  answered(tag: number, error: number): void {
    this.#options.latency.end(tag);
    this.#mirror?.answered(this.#options.replica, tag, error);
  }

  get up(): boolean {
    return this.#up;
  }

  #connect(nowMs: number): void {
    const target = this.#target;
    if (target === null) return;
    this.#retryAtMs = null;
    this.#silent = false;
    this.#reason = '';
    this.#refusal = null;
    this.#attempt++;
    this.#attemptEpoch = target.epoch;
    this.#connectMs = nowMs;
    const { exportName, epoch, isNode } = target;
    const session = { epoch, link: this.#options.name, attempt: this.#attempt };
    const name = isNode ? addSession(exportName, session) : exportName;
    for (const connection of this.#all) connection.connect(target, name, nowMs);
  }

  /**
   * Whether this attempt came at the wrong moment, which is no loss: the membership has changed since it began, or the
   * node is about to install it. Then the next one follows soon.
   */
  #isEarly(): boolean {
    if (this.#refusal === 'BW_EPOCH_OLD' && this.#target!.epoch > this.#attemptEpoch) {
      this.#retryAtMs = 0;
      return true;
    }
    if (this.#refusal !== 'BW_CONFLICT') return false;
    this.#conflictSinceMs ??= this.#connectMs;
    if (this.#connectMs - this.#conflictSinceMs > this.#options.timeoutMs) return false;
    this.#retryDelayMs = RECONNECT_MS_MIN;
    return true;
  }

  #failAll(reason: string, refusal: string | null): void {
    for (const connection of this.#all) connection.fail(reason, refusal);
  }

  /** Each tag has at most one read in flight, so where it went need not be kept. */
  #leastLoaded(): Connection {
    let best = this.#direct[0]!;
    for (let i = 1; i < this.#direct.length; i++) {
      if (this.#direct[i]!.inFlightCount < best.inFlightCount) best = this.#direct[i]!;
    }
    return best;
  }

  /** Why an export cannot serve this volume, or null. */
  #objection(connection: Connection): string | null {
    const { result } = connection;
    if (result === null) return 'the handshake has no result';
    if (result.sizeBytes < this.#options.sizeBytes) {
      return `the export has ${result.sizeBytes} bytes, the volume ${this.#options.sizeBytes}`;
    }
    const flags = result.transmissionFlags;
    if ((flags & NBD_FLAG_READ_ONLY) !== 0) return 'the export is read-only';
    const needed = NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
    if ((flags & needed) !== needed) return 'the export has no FLUSH or no FUA';
    if (result.blockSizeMinBytes > 512)
      return `the export's smallest block is ${result.blockSizeMinBytes} bytes`;
    return null;
  }
}
