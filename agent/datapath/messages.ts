/** What the main thread and a queue's worker say to each other: rare, structured, validated by their types alone. */

/** Best first. */
export const DATAPATHS = ['fused', 'copy', 'splice'] as const;
export type Datapath = (typeof DATAPATHS)[number];

/**
 * How a datapath moves payload, rung by rung: chosen by the probe (`chooseLadder`), or forced for tests and measurements.
 */
export interface DatapathLadder {
  /** Large payloads of writes: SEND_ZC from `zeroCopyBytesMin` up, or SEND always. */
  readonly send: 'zc' | 'plain';
  readonly zeroCopyBytesMin: number;
  /** Large payloads of reads into registered pages. */
  readonly receive: 'recv' | 'readFixed';
  /** Who registers a request's pages: the kernel with each request, or we, with those that need it. */
  readonly buffers: 'auto' | 'manual';
  /** Payloads up to this size go through own memory, many in one operation; 0: none. */
  readonly smallBytesMax: number;
}

export interface ReplicaTarget {
  readonly nodeId: string;
  /** A literal IP address: the main thread resolves names. */
  readonly address: string;
  readonly port: number;
  readonly exportName: string;
}

/** A worker's start data. */
export interface QueueWorkerData {
  /** Descriptor of /dev/ublkcN, opened and closed by the main thread. */
  readonly charFd: number;
  readonly queueId: number;
  readonly queueCount: number;
  /** Writes in flight of all queues (`createWriteRanges`), the same memory for each worker. */
  readonly writeRanges: SharedArrayBuffer;
  /**
   * By queue: the eventfd that its RingWorker was made with, so that a queue can wake another one whose write waited for
   * one of its own. Made and closed by the main thread, the latter after the last worker's end.
   */
  readonly wakeFds: readonly number[];
  readonly queueDepth: number;
  readonly ioSizeBytesMax: number;
  readonly sizeBytes: number;
  readonly datapath: Datapath;
  readonly ladder: DatapathLadder;
  readonly replicas: readonly ReplicaTarget[];
  /** A bit for each index of `replicas`. */
  readonly inSync: number;
  readonly replicaTimeoutMs: number;
  readonly counters: SharedArrayBuffer;
}

export type ToWorker =
  | { readonly type: 'membership'; readonly inSync: number }
  /** Fail every request from now on. */
  | { readonly type: 'fail' }
  /** While `on`, requests that no connected in-sync replica can serve fail instead of waiting. */
  | { readonly type: 'failUnserved'; readonly on: boolean }
  /** The device is quiesced, nothing new comes: end as soon as nothing is in flight. */
  | { readonly type: 'release' }
  /** Answered by a 'heap'. */
  | { readonly type: 'heap' };

export type FromWorker =
  /** All tags are with the kernel: the device may be started. */
  | { readonly type: 'fetched' }
  | { readonly type: 'link'; readonly replica: number; readonly up: boolean; readonly reason: string }
  | { readonly type: 'lost'; readonly replica: number; readonly reason: string }
  /** The worker's heap after a full collection where that can be had, and its requests so far. */
  | { readonly type: 'heap'; readonly usedBytes: number; readonly requests: number };
