/**
 * The way to one replica: one connection for small reads, a few for large ones, one for everything else, up together, down
 * together, made again after a pause for as long as the replica is wanted.
 */
import {
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  SIMPLE_REPLY_SIZE_BYTES,
} from '@blockwire/proto/nbd/constants.ts';
import type { Connection, ConnectionOptions, ConnectionOwner } from './connection.ts';
import type { LatencyRecorder } from './latency.ts';
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
  /** Bytes that the export must have at least. */
  readonly sizeBytes: number;
  readonly latency: LatencyRecorder;
  /** Told of every change: up, or down with the reason. */
  readonly onChange: (replica: number, up: boolean, reason: string) => void;
}

export class NbdReplicaLink implements ReplicaLink, ConnectionOwner {
  readonly #options: LinkOptions;
  /** Large reads. */
  readonly #direct: readonly Connection[];
  readonly #smallReads: Connection | null;
  readonly #write: Connection;
  readonly #all: readonly Connection[];
  #mirror: Mirror | null = null;
  #up = false;
  #closed = false;
  #reason = '';
  #retryDelayMs = RECONNECT_MS_MIN;
  #retryAtMs = 0;

  constructor(options: LinkOptions) {
    this.#options = options;
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

  /** Connects, and reports to `mirror` from now on. */
  start(mirror: Mirror, nowMs: number): void {
    this.#mirror = mirror;
    this.#connect(nowMs);
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
    this.#closed = true;
    this.#failAll('the replica left the membership');
  }

  flush(): void {
    for (let i = 0; i < this.#all.length; i++) this.#all[i]!.flush();
  }

  tick(nowMs: number): void {
    for (const connection of this.#all) connection.tick(nowMs);
    if (this.#closed || !this.idle || this.#retryAtMs === 0) return;
    if (this.#retryAtMs < 0) this.#retryAtMs = nowMs + this.#retryDelayMs;
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
    this.#options.onChange(this.#options.replica, true, '');
    this.#mirror?.linkUp(this.#options.replica);
  }

  connectionFailed(_connection: Connection, reason: string): void {
    if (this.#reason === '') this.#reason = reason;
    this.#failAll(reason);
  }

  connectionDown(): void {
    if (!this.idle) return;
    const reason = this.#reason;
    this.#reason = '';
    this.#up = false;
    this.#retryAtMs = -1;
    this.#retryDelayMs = Math.min(this.#retryDelayMs * 2, RECONNECT_MS_MAX);
    this.#options.onChange(this.#options.replica, false, reason);
    this.#mirror?.linkDown(this.#options.replica, reason);
  }

  answered(tag: number, error: number): void {
    this.#options.latency.end(tag);
    this.#mirror?.answered(this.#options.replica, tag, error);
  }

  get up(): boolean {
    return this.#up;
  }

  #connect(nowMs: number): void {
    this.#retryAtMs = 0;
    this.#reason = '';
    for (const connection of this.#all) connection.connect(nowMs);
  }

  #failAll(reason: string): void {
    for (const connection of this.#all) connection.fail(reason);
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
