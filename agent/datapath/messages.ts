/** What the main thread and a queue's worker say to each other: rare, structured, validated by their types alone. */

export type Datapath = 'fused' | 'copy';

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
  readonly queueDepth: number;
  readonly ioSizeBytesMax: number;
  readonly sizeBytes: number;
  readonly datapath: Datapath;
  readonly replicas: readonly ReplicaTarget[];
  /** A bit for each index of `replicas`. */
  readonly inSync: number;
  readonly replicaTimeoutMs: number;
  readonly counters: SharedArrayBuffer;
}

export type ToWorker =
  | { readonly type: 'membership'; readonly inSync: number }
  /** Fail every request from now on. */
  | { readonly type: 'fail' };

export type FromWorker =
  /** All tags are with the kernel: the device may be started. */
  | { readonly type: 'fetched' }
  | { readonly type: 'link'; readonly replica: number; readonly up: boolean; readonly reason: string }
  | { readonly type: 'lost'; readonly replica: number; readonly reason: string };
