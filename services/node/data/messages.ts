/** What the main thread and the data workers say to each other. Plain data; never on the path of a request. */
import type { ReplyMode } from '@blockwire/proto/nbd/reply.ts';
import type { Installed } from '../replication/admission.ts';
import type { Installation } from '../replication/membership.ts';
import type { Session } from '../replication/session.ts';
import type { StatusContext } from '../worker/block-status.ts';
import type { VolumeOptions } from '../worker/volume.ts';

export interface WorkerSettings {
  readonly index: number;
  readonly listenFd: number;
  readonly poolBytes: number;
  readonly slotCount: number;
  readonly connectionsMax: number;
  readonly stats: SharedArrayBuffer;
}

/** Every worker knows every export; one of them owns it. */
export interface ExportRecord {
  readonly id: string;
  readonly sizeBytes: number;
  /** Null: a snapshot, which belongs to no membership. */
  readonly installed: Installed | null;
  readonly owner: number;
  /** What its owner found the file system can do. */
  readonly canPunchHole: boolean;
}

/** A connection that has finished its handshake at another worker than the volume's. */
export interface Handover {
  readonly fd: number;
  readonly volumeId: string;
  readonly session: Session;
  readonly replyMode: ReplyMode;
  readonly contexts: readonly StatusContext[];
  /** Received, but not used by the handshake. */
  readonly leftover: Uint8Array;
}

/** Chunks of a copy that are at work at a time, and their size: the memory between main thread and worker. */
export const COPY_CHUNKS = 4;
export const COPY_CHUNK_BYTES = 256 * 1024;

/** Something to be copied from another replica. */
export interface CopyOrder {
  /** Names it, until `copied`. */
  readonly request: number;
  readonly id: string;
  /** A repair writes only blocks that do not match their checksums: repairer.ts. */
  readonly what: 'rebuild' | 'reconcile' | 'repair';
  /** What the source has written since, or has an intent for; or what is to be repaired. */
  readonly regions: Uint32Array;
  /** Of a rebuild: what was written here since it is copied, too. Of a repair: the installed one at which the source was named. */
  readonly epoch: number;
  /** 0: no limit. */
  readonly bytesPerSecond: number;
  /** Chunk `i` is read into its place at `i * COPY_CHUNK_BYTES`. */
  readonly window: SharedArrayBuffer;
}

export interface PulledChunk {
  readonly request: number;
  readonly index: number;
  readonly error: string | null;
  /** By block of 4096: 1 where the source has a hole. Its bytes in the window are zeroes. */
  readonly holes: Uint8Array;
}

/** A range to be read for the main thread. */
export interface PeekOrder {
  readonly request: number;
  readonly id: string;
  /** Of a block. */
  readonly offset: number;
  /** At most COPY_CHUNK_BYTES. */
  readonly length: number;
  /** Not beside a write of the range. */
  readonly isAlone: boolean;
  readonly window: SharedArrayBuffer;
}

export type ToWorker =
  /** To the owner: opens the volume, and probes its file system. Answered by `opened`. */
  | (VolumeOptions & { readonly type: 'open'; readonly request: number })
  /** To everyone: the export may be asked for. */
  | { readonly type: 'publish'; readonly request: number; readonly record: ExportRecord }
  /** To everyone: the export is unknown from now on. The owner answers when all of its connections are gone. */
  | { readonly type: 'retire'; readonly request: number; readonly id: string }
  /**
   * To everyone: what has been persisted of the volume's membership. Connections are cut as it says; the owner answers when
   * the last of their writes is over and, after that, regions with an intent have the epoch, durably.
   */
  | ({ readonly type: 'install'; readonly request: number; readonly id: string } & Installation)
  /** To everyone: the raw key that capabilities are verified with. */
  | { readonly type: 'trust'; readonly request: number; readonly key: Uint8Array }
  /** To the owner: no write begins until `unhold`; answered when none is at work. */
  | { readonly type: 'hold'; readonly request: number; readonly id: string }
  | { readonly type: 'unhold'; readonly request: number; readonly id: string }
  /** To the owner: the files are longer now. */
  | { readonly type: 'resize'; readonly request: number; readonly id: string; readonly sizeBytes: number }
  /** To the owner: what was written so far is on all in-sync replicas; answered when its intents are cleared. */
  | { readonly type: 'checkpoint'; readonly request: number; readonly id: string }
  /** To the owner: begins a copy; answered by `copied` when nothing of it is at work any more. */
  | ({ readonly type: 'copy' } & CopyOrder)
  /** To the owner; answered when the bytes are in its memory. */
  | ({ readonly type: 'peek' } & PeekOrder)
  | ({ readonly type: 'pulled'; readonly id: string } & PulledChunk)
  | { readonly type: 'endCopy'; readonly request: number; readonly id: string; readonly reason: string }
  | { readonly type: 'adopt'; readonly handover: Handover }
  /** Cuts every connection and ends the loop. */
  | { readonly type: 'stop' };

export type FromWorker =
  | { readonly type: 'ready'; readonly registeredMemory: boolean }
  | { readonly type: 'done'; readonly request: number; readonly errno: number }
  | {
      readonly type: 'opened';
      readonly request: number;
      readonly canPunchHole: boolean;
      readonly canZeroRange: boolean;
    }
  /** Of a copy: a chunk is to be read from the source. What was read so far. */
  | {
      readonly type: 'pull';
      readonly request: number;
      readonly index: number;
      readonly offset: number;
      readonly length: number;
      readonly copiedBytes: number;
      readonly totalBytes: number;
    }
  /** @param error null: everything is copied, and durable */
  | { readonly type: 'copied'; readonly request: number; readonly error: string | null }
  | { readonly type: 'handover'; readonly to: number; readonly handover: Handover }
  | { readonly type: 'connectionFailed'; readonly reason: string }
  /** At most one a tick. */
  | { readonly type: 'checksumFailed'; readonly id: string; readonly offset: number }
  | { readonly type: 'volumeFailed'; readonly id: string; readonly errno: number };
