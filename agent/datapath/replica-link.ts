/**
 * The way to one replica: a few connections for reads and one for everything else, up together, down together, made
 * again after a pause for as long as the replica is wanted.
 */
import {
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
} from '@blockwire/proto/nbd/constants.ts';
import {
  type Connection,
  type ConnectionOptions,
  type ConnectionOwner,
  ReadConnection,
  WriteConnection,
} from './connection.ts';
import type { LatencyRecorder } from './latency.ts';
import type { Mirror, ReplicaLink } from './mirror.ts';
import { Operation } from './request.ts';

/**
 * A read connection takes one reply a trip through the ring: the payload can only be received once the header told whose
 * it is. Several of them bring several replies a trip.
 */
const READ_CONNECTIONS = 4;
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
  readonly #reads: readonly ReadConnection[];
  readonly #write: WriteConnection;
  #mirror: Mirror | null = null;
  #up = false;
  #closed = false;
  #reason = '';
  #retryDelayMs = RECONNECT_MS_MIN;
  #retryAtMs = 0;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#reads = Array.from(
      { length: READ_CONNECTIONS },
      () => new ReadConnection({ ...options, owner: this }),
    );
    this.#write = new WriteConnection({ ...options, owner: this });
  }

  /** Connects, and reports to `mirror` from now on. */
  start(mirror: Mirror, nowMs: number): void {
    this.#mirror = mirror;
    this.#connect(nowMs);
  }

  get inFlightCount(): number {
    let count = this.#write.inFlightCount;
    for (const read of this.#reads) count += read.inFlightCount;
    return count;
  }

  /** Whether nothing of this link is in the kernel. */
  get idle(): boolean {
    return this.#write.state === 'down' && this.#reads.every((read) => read.state === 'down');
  }

  submit(tag: number): void {
    this.#options.latency.begin(tag);
    if (this.#options.requests.operation[tag] === Operation.READ) this.#leastLoaded().submit(tag);
    else this.#write.submit(tag);
  }

  close(): void {
    this.#closed = true;
    this.#failAll('the replica left the membership');
  }

  flush(): void {
    for (const read of this.#reads) read.flush();
    this.#write.flush();
  }

  tick(nowMs: number): void {
    for (const read of this.#reads) read.tick(nowMs);
    this.#write.tick(nowMs);
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
    if (this.#write.state !== 'up' || this.#reads.some((read) => read.state !== 'up')) return;
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
    for (const read of this.#reads) read.connect(nowMs);
    this.#write.connect(nowMs);
  }

  #failAll(reason: string): void {
    for (const read of this.#reads) read.fail(reason);
    this.#write.fail(reason);
  }

  /** Each tag has at most one read in flight, so where it went need not be kept. */
  #leastLoaded(): ReadConnection {
    let best = this.#reads[0]!;
    for (const read of this.#reads) if (read.inFlightCount < best.inFlightCount) best = read;
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
