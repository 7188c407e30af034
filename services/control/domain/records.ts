/**
 * What the control plane remembers, one table a kind. Liveness is not here: who is online is known only by
 * who is connected now (see fleet.ts).
 */
import { type Static, Type } from 'typebox';
import { Table } from '../store/table.ts';

const Bytes = Type.Integer({ minimum: 0 });
const Counter = Type.Integer({ minimum: 1 });
const Time = Type.String();

export const ReplicaStateSchema = Type.Enum(['inSync', 'rebuilding', 'stale']);
export type ReplicaState = Static<typeof ReplicaStateSchema>;

export const VolumeStateSchema = Type.Enum(['creating', 'available', 'inUse']);
export type VolumeState = Static<typeof VolumeStateSchema>;

export const AttachmentStateSchema = Type.Enum(['attaching', 'attached', 'detaching', 'lost']);
export type AttachmentState = Static<typeof AttachmentStateSchema>;

export const DatapathSchema = Type.Enum(['auto', 'fused', 'splice', 'copy']);
export type Datapath = Static<typeof DatapathSchema>;

/** What a user may ask of a device; zero leaves it to the agent. */
const DeviceOptions = Type.Object({
  queues: Bytes,
  /** Requests in flight of one queue. */
  queueDepth: Bytes,
  /** Logical block: 512 or 4096. */
  blockSizeBytes: Bytes,
  readOnly: Type.Boolean(),
  /** I/O fails when no in-sync replica has answered for so long; zero: it waits. */
  ioTimeoutMs: Bytes,
});
export type DeviceOptions = Static<typeof DeviceOptions>;

export const DEFAULT_DEVICE_OPTIONS: DeviceOptions = {
  queues: 0,
  queueDepth: 0,
  blockSizeBytes: 0,
  readOnly: false,
  ioTimeoutMs: 0,
};

const ReplicaRecord = Type.Object({
  nodeId: Type.String(),
  state: ReplicaStateSchema,
  /** The epoch from which on it lacks writes, 0: it has nothing; null when in sync. Kept while it is rebuilt. */
  staleSinceEpoch: Type.Union([Type.Integer({ minimum: 0 }), Type.Null()]),
  /**
   * The epoch at which it last became a member that gets writes: what a writer knew before says nothing about it. Names
   * a rebuild. Absent: 1.
   */
  joinedEpoch: Type.Optional(Counter),
  /** The node of the replica whose place it is to take. */
  replaces: Type.Optional(Type.String()),
});
export type ReplicaRecord = Static<typeof ReplicaRecord>;

export const SnapshotStateSchema = Type.Enum(['creating', 'ready', 'deleting']);

const SnapshotRecord = Type.Object({
  name: Type.String(),
  state: SnapshotStateSchema,
  sizeBytes: Bytes,
  /** The volume's when it was taken. */
  epoch: Counter,
  /** Those that have it, or may have something of it. */
  nodeIds: Type.Array(Type.String()),
  createdAt: Time,
});
export type SnapshotRecord = Static<typeof SnapshotRecord>;

const ScrubbedReplica = Type.Object({
  nodeId: Type.String(),
  /** What it is compared with. */
  sourceNodeId: Type.String(),
  isDone: Type.Boolean(),
  scannedBytes: Bytes,
  mismatchedRegions: Bytes,
  repairedRegions: Bytes,
  error: Type.Union([Type.String(), Type.Null()]),
});
export type ScrubbedReplica = Static<typeof ScrubbedReplica>;

const ScrubRecord = Type.Object({
  startedAt: Time,
  /** Null while it is under way. */
  finishedAt: Type.Union([Time, Type.Null()]),
  replicas: Type.Array(ScrubbedReplica),
});
export type ScrubRecord = Static<typeof ScrubRecord>;

const VolumeRecord = Type.Object({
  id: Type.String(),
  name: Type.String(),
  sizeBytes: Bytes,
  state: VolumeStateSchema,
  /** Who may write: raised by every attach, before any node hears of it. */
  generation: Counter,
  /** Which replicas count: raised by every change of a replica's state. */
  epoch: Counter,
  replicas: Type.Array(ReplicaRecord),
  /**
   * The epoch at which the last in-sync replica was taken back after a power failure, with what it had not flushed
   * lost. Absent: never.
   */
  lossEpoch: Type.Optional(Counter),
  /** The last scrub. Absent: none yet. */
  scrub: Type.Optional(ScrubRecord),
  /** Absent: none. */
  snapshots: Type.Optional(Type.Array(SnapshotRecord)),
  /** Set exactly while the state is inUse. */
  attachmentId: Type.Union([Type.String(), Type.Null()]),
  createdAt: Time,
});
export type VolumeRecord = Static<typeof VolumeRecord>;

const AttachmentRecord = Type.Object({
  id: Type.String(),
  volumeId: Type.String(),
  agentId: Type.String(),
  state: AttachmentStateSchema,
  /** Null until attached. */
  device: Type.Union([Type.String(), Type.Null()]),
  /** What was asked for; once attached, the mode in use. */
  datapath: Type.String(),
  /** Absent in records of earlier versions. */
  options: Type.Optional(DeviceOptions),
  generation: Counter,
  createdAt: Time,
});
export type AttachmentRecord = Static<typeof AttachmentRecord>;

const NodeRecord = Type.Object({
  id: Type.String(),
  /** At which agents and clients reach it. */
  nbdAddress: Type.String(),
  /** At which other nodes do; absent: the same. */
  peerAddress: Type.Optional(Type.String()),
  zone: Type.String(),
  version: Type.String(),
  capacityBytes: Bytes,
  freeBytes: Bytes,
  /** To be emptied: takes no new replicas, and loses those it has. Absent: no. */
  draining: Type.Optional(Type.Boolean()),
});
export type NodeRecord = Static<typeof NodeRecord>;

const AgentRecord = Type.Object({
  id: Type.String(),
  host: Type.String(),
  version: Type.String(),
  datapaths: Type.Array(Type.String()),
});
export type AgentRecord = Static<typeof AgentRecord>;

export const volumes = new Table('volume', VolumeRecord);
/** Keyed by the volume's name: what makes names unique. */
export const names = new Table('name', Type.Object({ volumeId: Type.String() }));
export const attachments = new Table('attachment', AttachmentRecord);
export const nodes = new Table('node', NodeRecord);
export const agents = new Table('agent', AgentRecord);
/** Private keys: PKCS #8 in DER, base64. */
export const secrets = new Table('secret', Type.Object({ privateKey: Type.String() }));

/**
 * Bytes of a node's capacity that replicas claim, by node. Changed in the commits that make and unmake
 * replicas, so that two placements cannot both take the last space.
 */
export const claims = new Table('claim', Type.Object({ claimedBytes: Bytes }));

/**
 * Replicas that are to be deleted, by node and volume. A replica of a volume that the control plane does not
 * know is deleted only when its tombstone says so: a lost or older metadata store must never cost data.
 */
export const replicaTombstones = new Table(
  'gone',
  Type.Object({ nodeId: Type.String(), volumeId: Type.String(), sizeBytes: Bytes, createdAt: Time }),
);

/** Devices that are to be removed though their agent has not confirmed it, by agent and attachment. */
export const deviceTombstones = new Table(
  'detached',
  Type.Object({
    agentId: Type.String(),
    attachmentId: Type.String(),
    volumeId: Type.String(),
    createdAt: Time,
  }),
);

/** POST requests by the digest of their idempotency key. */
export const idempotency = new Table(
  'idempotency',
  Type.Object({
    requestDigest: Type.String(),
    /** The id of what the request makes, chosen before it is made. */
    resourceId: Type.String(),
    /** The process that runs the request; another one may take over when that one is gone. */
    owner: Type.String(),
    /** The answer's body as JSON text; null while the request runs. */
    answer: Type.Union([Type.String(), Type.Null()]),
    createdAt: Time,
  }),
);
