/** What the main thread and the data workers say to each other. Plain data; never on the path of a request. */
import type { ReplyMode } from '@blockwire/proto/nbd/reply.ts';

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
  readonly generation: number;
  readonly owner: number;
  /** What its owner found the file system can do. */
  readonly canPunchHole: boolean;
}

/** A connection that has finished its handshake at another worker than the volume's. */
export interface Handover {
  readonly fd: number;
  readonly volumeId: string;
  readonly generation: number;
  readonly replyMode: ReplyMode;
  readonly allocationContextId: number;
  /** Received, but not used by the handshake. */
  readonly leftover: Uint8Array;
}

export type ToWorker =
  /** To the owner: opens the volume, and probes its file system. Answered by `opened`. */
  | {
      readonly type: 'open';
      readonly request: number;
      readonly id: string;
      readonly fd: number;
      readonly sizeBytes: number;
      readonly generation: number;
    }
  /** To everyone: the export may be asked for. */
  | { readonly type: 'publish'; readonly request: number; readonly record: ExportRecord }
  /** To everyone: the export is unknown from now on. The owner answers when all of its connections are gone. */
  | { readonly type: 'retire'; readonly request: number; readonly id: string }
  /** To everyone: connections with a lower generation are cut. The owner answers when their last write is over. */
  | { readonly type: 'fence'; readonly request: number; readonly id: string; readonly generation: number }
  | { readonly type: 'adopt'; readonly handover: Handover }
  /** Cuts every connection and ends the loop. */
  | { readonly type: 'stop' };

export type FromWorker =
  | { readonly type: 'ready'; readonly registeredMemory: boolean }
  | { readonly type: 'done'; readonly request: number }
  | {
      readonly type: 'opened';
      readonly request: number;
      readonly canPunchHole: boolean;
      readonly canZeroRange: boolean;
    }
  | { readonly type: 'handover'; readonly to: number; readonly handover: Handover }
  | { readonly type: 'connectionFailed'; readonly reason: string }
  | { readonly type: 'volumeFailed'; readonly id: string; readonly errno: number };
