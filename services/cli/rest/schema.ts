/**
 * What this program relies on in the control plane's REST answers. More fields are allowed and passed on by
 * `--json`; a missing or mistyped one is a protocol error.
 */
import { type Static, Type } from 'typebox';

export const Replica = Type.Object({
  node: Type.String(),
  /** inSync, rebuilding or stale. */
  state: Type.String(),
  /** nbd:// address for any NBD client. */
  uri: Type.String(),
  /** While it is being rebuilt. */
  rebuild: Type.Optional(
    Type.Union([
      Type.Object({ copiedBytes: Type.Integer({ minimum: 0 }), totalBytes: Type.Integer({ minimum: 0 }) }),
      Type.Null(),
    ]),
  ),
  /** The node whose replica it is to take the place of. */
  replaces: Type.Optional(Type.Union([Type.String(), Type.Null()])),
});
export type Replica = Static<typeof Replica>;

export const Volume = Type.Object({
  id: Type.String(),
  name: Type.String(),
  sizeBytes: Type.Integer({ minimum: 0 }),
  /** creating, available, inUse, deleting or error. */
  state: Type.String(),
  degraded: Type.Optional(Type.Boolean()),
  replicas: Type.Array(Replica),
  /** The last comparison of the replicas. */
  scrub: Type.Optional(
    Type.Union([
      Type.Object({
        startedAt: Type.String(),
        finishedAt: Type.Union([Type.String(), Type.Null()]),
        replicas: Type.Array(
          Type.Object({
            node: Type.String(),
            mismatchedRegions: Type.Integer({ minimum: 0 }),
            repairedRegions: Type.Integer({ minimum: 0 }),
            error: Type.Union([Type.String(), Type.Null()]),
          }),
        ),
      }),
      Type.Null(),
    ]),
  ),
});
export type Volume = Static<typeof Volume>;

export const Attachment = Type.Object({
  id: Type.String(),
  volume: Type.String(),
  agent: Type.String(),
  /** /dev/ublkbN once the agent has made it. */
  device: Type.Optional(Type.Union([Type.String(), Type.Null()])),
  datapath: Type.Optional(Type.Union([Type.String(), Type.Null()])),
  state: Type.String(),
  /** ok, waiting, failing, recovering or unknown. */
  io: Type.Optional(Type.String()),
  readOnly: Type.Optional(Type.Boolean()),
  ioTimeoutMs: Type.Optional(Type.Integer()),
});
export type Attachment = Static<typeof Attachment>;

export const StorageNode = Type.Object({
  id: Type.String(),
  /** online or offline. */
  state: Type.String(),
  nbd: Type.String(),
  zone: Type.Optional(Type.String()),
  capacityBytes: Type.Integer({ minimum: 0 }),
  freeBytes: Type.Integer({ minimum: 0 }),
  draining: Type.Optional(Type.Boolean()),
  /** Replicas that are there. */
  replicas: Type.Optional(Type.Integer({ minimum: 0 })),
  version: Type.Optional(Type.String()),
});
export type StorageNode = Static<typeof StorageNode>;

export const Agent = Type.Object({
  id: Type.String(),
  state: Type.String(),
  host: Type.Optional(Type.String()),
  version: Type.Optional(Type.String()),
  /** Data path modes that the agent's host offers, best first. */
  datapaths: Type.Optional(Type.Array(Type.String())),
});
export type Agent = Static<typeof Agent>;

export const Snapshot = Type.Object({
  name: Type.String(),
  /** creating, ready or deleting. */
  state: Type.String(),
  sizeBytes: Type.Integer({ minimum: 0 }),
  replicas: Type.Array(Type.Object({ node: Type.String(), uri: Type.String() })),
  /** Nodes with a replica of the volume that lacks the snapshot. */
  missing: Type.Optional(Type.Array(Type.String())),
  createdAt: Type.Optional(Type.String()),
});
export type Snapshot = Static<typeof Snapshot>;

/** What happened; more fields by type, such as `volume`, `node`, `reason`. */
export const ControlEvent = Type.Object({ id: Type.Integer(), at: Type.String(), type: Type.String() });
export type ControlEvent = Static<typeof ControlEvent>;

export const SnapshotList = Type.Array(Snapshot);
export const VolumeList = Type.Array(Volume);
export const AttachmentList = Type.Array(Attachment);
export const StorageNodeList = Type.Array(StorageNode);
export const AgentList = Type.Array(Agent);

export const ErrorBody = Type.Object({ code: Type.String(), message: Type.String() });
