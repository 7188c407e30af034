/** What the main thread and a queue's worker say to each other: rare, structured, validated by their types alone. */

/** Best first. */
export const DATAPATHS = ['fused', 'copy', 'splice'] as const;
export type Datapath = (typeof DATAPATHS)[number];

/**
 * How a datapath moves payload, rung by rung: chosen by the probe (`chooseLadder`), or forced for tests and measurements.
 */
export interface DatapathLadder {
  /**
   * Large payloads of writes: SEND_ZC from `zeroCopyBytesMin` up, or SEND always; `auto`: SEND_ZC on connections on which the
   * kernel does not copy after all.
   */
  readonly send: 'auto' | 'zc' | 'plain';
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
  /** One of our nodes: it is told the session, MARK and CHECKPOINT. Other NBD servers are not. */
  readonly isNode: boolean;
}

/** A worker's start data. */
export interface QueueWorkerData {
  /** Descriptor of /dev/ublkcN, opened and closed by the main thread. */
  readonly charFd: number;
  readonly queueId: number;
  readonly queueCount: number;
  /** Requests in flight of all queues (`createRanges`), the same memory for each worker. */
  readonly ranges: SharedArrayBuffer;
  /** See `createAgreement`; the same memory for each worker. */
  readonly agreement: SharedArrayBuffer;
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
  readonly membership: MembershipOrder;
  /** Names the device at its nodes: agent and attachment. */
  readonly deviceName: string;
  /** Of the device's writer; it does not change while a worker lives. */
  readonly generation: number;
  readonly replicaTimeoutMs: number;
  /** See PollWindow; 0: the worker sleeps at once. */
  readonly busyPollUsMax: number;
  readonly counters: SharedArrayBuffer;
}

/** What a queue goes by from now on; masks have a bit for each slot (members.ts). */
export interface MembershipOrder {
  readonly type: 'membership';
  readonly epoch: number;
  readonly inSync: number;
  readonly rebuilding: number;
  readonly rejoined: number;
  /** Replicas on this host. */
  readonly local: number;
  /** What was acknowledged and not flushed may be gone. */
  readonly hasLoss: boolean;
  /** By slot: where its replica is, or was before it left. */
  readonly targets: readonly ReplicaTarget[];
}

export type ToWorker =
  | MembershipOrder
  /** Replicas have joined: see the agreement. */
  | { readonly type: 'join' }
  /** Send MARK and begin its fence; answered by a 'fence'. */
  | { readonly type: 'mark'; readonly number: number; readonly epoch: number }
  | { readonly type: 'checkpoint'; readonly number: number; readonly epoch: number }
  /** Hold writes back, answered by a 'held' when none is in flight; or let them go. */
  | { readonly type: 'hold'; readonly number: number }
  | { readonly type: 'unhold' }
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
  | {
      readonly type: 'link';
      readonly replica: number;
      readonly up: boolean;
      readonly reason: string;
      /** The BW_ code by which the node did not let it in. */
      readonly refusal: string | null;
    }
  /** The link to a replica that is to join is up, in a queue that goes by this epoch. */
  | { readonly type: 'ready'; readonly replica: number; readonly epoch: number }
  /** Every replica being rebuilt has joined, and what began before is done. */
  | { readonly type: 'settled'; readonly epoch: number }
  | { readonly type: 'fence'; readonly number: number }
  | { readonly type: 'held'; readonly number: number }
  | { readonly type: 'lost'; readonly replica: number; readonly reason: string }
  /** The worker's heap after a full collection where that can be had, and its requests so far. */
  | { readonly type: 'heap'; readonly usedBytes: number; readonly requests: number };
