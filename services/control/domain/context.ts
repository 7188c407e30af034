/** What the domain works with: the store, the fleets, and time and randomness as parameters. */
import type { Logger } from '@blockwire/shared/log.ts';
import type { ExportNames } from './capabilities.ts';
import type { ControlEvents, EventStore } from './events.ts';
import type { Fleet } from './fleet.ts';
import type { Datapath, DeviceOptions, ReplicaState } from './records.ts';

export interface Membership {
  readonly volumeId: string;
  readonly generation: number;
  readonly epoch: number;
  /** Where what was not flushed may have been lost, since no in-sync replica was left; 0: never. */
  readonly lossEpoch: number;
  readonly replicas: readonly {
    readonly nodeId: string;
    readonly nbdAddress: string;
    readonly exportName: string;
    readonly state: ReplicaState;
    /** The epoch at which it last became a member: another one than before means that it left meanwhile. */
    readonly joinedEpoch: number;
  }[];
}

/** Who copies from whom. */
export interface ResyncOrder {
  readonly volumeId: string;
  readonly generation: number;
  readonly epoch: number;
  readonly sourceNodeId: string;
  readonly sourceAddress: string;
  readonly exportName: string;
}

export type NodeAction =
  | {
      readonly kind: 'createReplica';
      readonly volumeId: string;
      readonly sizeBytes: number;
      readonly generation: number;
      readonly epoch: number;
    }
  | { readonly kind: 'deleteReplica'; readonly volumeId: string }
  | {
      readonly kind: 'installEpoch';
      readonly volumeId: string;
      readonly generation: number;
      readonly epoch: number;
      readonly role: 'inSync' | 'rebuilding';
      readonly joinedEpoch: number;
      readonly lossEpoch: number;
    }
  | ({ readonly kind: 'reconcile' } & ResyncOrder)
  | ({
      readonly kind: 'rebuild';
      readonly sinceEpoch: number;
      readonly joinedEpoch: number;
      /** 0: no bound. */
      readonly bytesPerSecond: number;
    } & ResyncOrder)
  | ({ readonly kind: 'scrub'; readonly bytesPerSecond: number } & ResyncOrder)
  | ({ readonly kind: 'repair'; readonly regions: readonly number[] } & ResyncOrder)
  | {
      readonly kind: 'createSnapshot' | 'deleteSnapshot';
      readonly volumeId: string;
      readonly snapshot: string;
    }
  | {
      readonly kind: 'cloneReplica';
      readonly sourceVolumeId: string;
      readonly snapshot: string;
      readonly volumeId: string;
      readonly generation: number;
      readonly epoch: number;
    }
  | { readonly kind: 'resizeReplica'; readonly volumeId: string; readonly sizeBytes: number };

/** What an agent needs to know to serve a volume. */
export interface AttachAction {
  readonly kind: 'attach';
  readonly attachmentId: string;
  readonly membership: Membership;
  readonly sizeBytes: number;
  readonly datapath: Datapath;
  readonly volumeName: string;
  readonly options: DeviceOptions;
}

export type AgentAction =
  | AttachAction
  /** Done when the agent goes by it, and no write is in flight that began before. */
  | { readonly kind: 'membership'; readonly attachmentId: string; readonly membership: Membership }
  | {
      readonly kind: 'detach';
      readonly attachmentId: string;
      readonly volumeId: string;
      readonly force: boolean;
    }
  /** Done when no write is in flight; new ones wait until the release, or until the bound is over. */
  | { readonly kind: 'holdWrites'; readonly attachmentId: string; readonly holdMsMax: number }
  /** Fails with BW_TIMEOUT when the hold had ended by itself. */
  | { readonly kind: 'releaseWrites'; readonly attachmentId: string }
  | {
      readonly kind: 'resize';
      readonly attachmentId: string;
      readonly volumeId: string;
      readonly sizeBytes: number;
    };

/** What an agent reports of a device it serves. */
export interface DeviceReport {
  readonly attachmentId: string;
  readonly volumeId: string;
  readonly device: string;
  readonly datapath: string;
}

/** Bounds of everything that waits for another process. */
export interface Timing {
  readonly heartbeatIntervalMs: number;
  readonly missedMax: number;
  readonly reconnectGraceMs: number;
  readonly createReplicaMs: number;
  readonly deleteReplicaMs: number;
  readonly installEpochMs: number;
  readonly attachMs: number;
  readonly detachMs: number;
  readonly resizeMs: number;
  readonly reconcileMs: number;
  readonly repairMs: number;
  readonly membershipMs: number;
  /** How long writes may be held for a snapshot. */
  readonly snapshotHoldMs: number;
  /** Between two looks at all replicas. */
  readonly rebuildSweepMs: number;
  /** Between two attempts at what failed. */
  readonly pauseMsMin: number;
  readonly pauseMsMax: number;
  /** How soon an event of another control plane is noticed. */
  readonly eventPollMs: number;
  /** Whoever follows the events hears something so often. */
  readonly eventHeartbeatMs: number;
  /** How long one that follows them may take nothing. */
  readonly slowReaderMs: number;
}

/** What the cluster does by itself, and how much of it at once. */
export interface Policy {
  /** Rebuilds that a node takes part in at once, as target or source. */
  readonly rebuildsPerNodeMax: number;
  /** Of one rebuild; 0: no bound. */
  readonly rebuildBytesPerSecond: number;
  /** A stale replica whose node is away for so long is replaced on another node; Infinity: never. */
  readonly replaceAfterMs: number;
  /** From the end of a volume's scrub to the next one; Infinity: only when asked for. */
  readonly scrubIntervalMs: number;
  /** Of one replica; 0: no bound. */
  readonly scrubBytesPerSecond: number;
}

export const DEFAULT_POLICY: Policy = {
  rebuildsPerNodeMax: 2,
  rebuildBytesPerSecond: 200 * 1024 ** 2,
  replaceAfterMs: 600_000,
  scrubIntervalMs: 7 * 86_400_000,
  scrubBytesPerSecond: 50 * 1024 ** 2,
};

export const DEFAULT_TIMING: Timing = {
  heartbeatIntervalMs: 2_000,
  missedMax: 3,
  reconnectGraceMs: 5_000,
  createReplicaMs: 15_000,
  deleteReplicaMs: 10_000,
  installEpochMs: 5_000,
  attachMs: 30_000,
  detachMs: 30_000,
  resizeMs: 15_000,
  reconcileMs: 600_000,
  repairMs: 60_000,
  membershipMs: 30_000,
  snapshotHoldMs: 5_000,
  rebuildSweepMs: 1_000,
  pauseMsMin: 1_000,
  pauseMsMax: 60_000,
  eventPollMs: 1_000,
  eventHeartbeatMs: 15_000,
  slowReaderMs: 30_000,
};

export type NodeFleet = Fleet<NodeAction, void>;
/** The result of a command to an agent: the device of an attach, null for a detach. */
export type AgentFleet = Fleet<AgentAction, DeviceReport | null>;

export interface Context {
  readonly store: EventStore;
  readonly exportNames: ExportNames;
  readonly nodeFleet: NodeFleet;
  readonly agentFleet: AgentFleet;
  readonly events: ControlEvents;
  readonly log: Logger;
  readonly timing: Timing;
  readonly policy: Policy;
  /** Milliseconds since 1970. */
  readonly now: () => number;
  /** A new id, `prefix-` and 12 random hexadecimal digits. */
  readonly newId: (prefix: string) => string;
}

export function timestamp(context: Context): string {
  return new Date(context.now()).toISOString();
}
