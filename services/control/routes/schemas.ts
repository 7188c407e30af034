/** What REST takes and answers, as schemas: they validate, they give the types, and they are the OpenAPI. */
import { type Static, Type } from 'typebox';
import { RecordedEvent } from '../domain/events.ts';
import {
  AttachmentStateSchema,
  DatapathSchema,
  ReplicaStateSchema,
  SnapshotStateSchema,
  VolumeStateSchema,
} from '../domain/records.ts';

export const BLOCK_SIZE_BYTES = 4096;
export const VOLUME_SIZE_BYTES_MIN = 1024 ** 2;
export const VOLUME_SIZE_BYTES_MAX = 64 * 1024 ** 4;
export const REPLICA_COUNT_MAX = 8;

const strict = { additionalProperties: false } as const;
const Nullable = <T extends Parameters<typeof Type.Union>[0][number]>(type: T) =>
  Type.Union([type, Type.Null()]);

export const ErrorBody = Type.Object(
  {
    code: Type.String({ description: 'stable code, BW_...' }),
    message: Type.String({ description: 'what is wrong and what to do' }),
    details: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
  },
  { $id: 'Error' },
);

export const IdParams = Type.Object({ id: Type.String({ minLength: 1 }) });

export const CreateVolumeBody = Type.Object(
  {
    name: Type.String({
      pattern: '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$',
      description: '1 to 63 of a-z, 0-9 and hyphen, no hyphen at its ends',
    }),
    sizeBytes: Type.Optional(
      Type.Integer({
        minimum: VOLUME_SIZE_BYTES_MIN,
        maximum: VOLUME_SIZE_BYTES_MAX,
        multipleOf: BLOCK_SIZE_BYTES,
        description:
          'an integer from 1 MiB to 64 TiB, a multiple of 4096; only a clone may leave it out: then as its snapshot',
      }),
    ),
    replicas: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: REPLICA_COUNT_MAX,
        description: `an integer from 1 to ${REPLICA_COUNT_MAX}; only a clone may leave it out: then all that have the snapshot`,
      }),
    ),
    source: Type.Optional(
      Type.Object(
        { volume: Type.String({ minLength: 1 }), snapshot: Type.String({ minLength: 1 }) },
        { ...strict, description: 'the snapshot to begin with: id of its volume, and its name' },
      ),
    ),
  },
  strict,
);
export type CreateVolumeBody = Static<typeof CreateVolumeBody>;

export const CreateSnapshotBody = Type.Object(
  {
    name: Type.String({
      pattern: '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$',
      description: '1 to 63 of a-z, 0-9 and hyphen, no hyphen at its ends',
    }),
  },
  strict,
);

export const SnapshotParams = Type.Object({
  id: Type.String({ minLength: 1 }),
  name: Type.String({ minLength: 1 }),
});

export const SnapshotView = Type.Object({
  volume: Type.String(),
  name: Type.String(),
  state: SnapshotStateSchema,
  sizeBytes: Type.Integer(),
  epoch: Type.Integer(),
  replicas: Type.Array(
    Type.Object({
      node: Type.String(),
      uri: Type.String({ description: 'nbd:// address, read-only, for a day' }),
    }),
  ),
  missing: Type.Array(Type.String(), {
    description: 'nodes with a replica of the volume that lacks the snapshot, as it was not in sync',
  }),
  createdAt: Type.String(),
});
export type SnapshotView = Static<typeof SnapshotView>;

export const DeleteVolumeQuery = Type.Object(
  {
    snapshots: Type.Optional(
      Type.Literal('delete', {
        description: 'delete: its snapshots go with it; by default it stays for them',
      }),
    ),
  },
  strict,
);

export const ResizeVolumeBody = Type.Object(
  {
    sizeBytes: Type.Integer({
      minimum: VOLUME_SIZE_BYTES_MIN,
      maximum: VOLUME_SIZE_BYTES_MAX,
      multipleOf: BLOCK_SIZE_BYTES,
      description: 'no less than now; an integer up to 64 TiB, a multiple of 4096',
    }),
  },
  strict,
);

export const ReplicaParams = Type.Object({
  id: Type.String({ minLength: 1 }),
  node: Type.String({ minLength: 1 }),
});

export const PromoteBody = Type.Object(
  {
    acceptLoss: Type.Literal(true, {
      description: 'true: what was written since the replica went stale is lost for good',
    }),
  },
  strict,
);

export const ListVolumesQuery = Type.Object(
  { name: Type.Optional(Type.String({ description: 'only the volume of this name' })) },
  strict,
);

export const VolumeView = Type.Object({
  id: Type.String(),
  name: Type.String(),
  sizeBytes: Type.Integer(),
  state: VolumeStateSchema,
  degraded: Type.Boolean({ description: 'a replica is not in sync' }),
  generation: Type.Integer(),
  epoch: Type.Integer(),
  replicas: Type.Array(
    Type.Object({
      node: Type.String(),
      state: ReplicaStateSchema,
      uri: Type.String({
        description:
          'nbd:// address that any NBD client can open for a day; read-only while the volume is attached',
      }),
      rebuild: Nullable(
        Type.Object(
          { copiedBytes: Type.Integer(), totalBytes: Type.Integer() },
          { description: 'while the state is rebuilding; totalBytes as far as it is known' },
        ),
      ),
      replaces: Nullable(Type.String({ description: 'the node whose replica it is to take the place of' })),
    }),
  ),
  scrub: Nullable(
    Type.Object(
      {
        startedAt: Type.String(),
        finishedAt: Nullable(Type.String({ description: 'null while it is under way' })),
        replicas: Type.Array(
          Type.Object({
            node: Type.String(),
            scannedBytes: Type.Integer(),
            mismatchedRegions: Type.Integer({
              description: 'regions of 1 MiB that differed, or whose checksums did not match',
            }),
            repairedRegions: Type.Integer(),
            error: Nullable(Type.String({ description: 'why not everything was compared' })),
          }),
        ),
      },
      { description: 'the last comparison of the replicas' },
    ),
  ),
  attachment: Nullable(Type.String()),
  createdAt: Type.String(),
});
export type VolumeView = Static<typeof VolumeView>;

export const CreateAttachmentBody = Type.Object(
  {
    volume: Type.String({ minLength: 1, description: 'id of the volume' }),
    agent: Type.Optional(
      Type.String({ minLength: 1, description: 'id of the agent; by default the only one online' }),
    ),
    datapath: Type.Optional(DatapathSchema),
    queues: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 256, description: 'hardware queues, a worker each; default 1' }),
    ),
    queueDepth: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 4096, description: 'requests in flight of one queue' }),
    ),
    blockSizeBytes: Type.Optional(Type.Enum([512, 4096], { description: 'logical block; default 512' })),
    readOnly: Type.Optional(Type.Boolean({ description: 'the device refuses writes' })),
    ioTimeoutMs: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 86_400_000,
        description: 'I/O fails when no in-sync replica has answered for so long; 0 (default): it waits',
      }),
    ),
    force: Type.Optional(
      Type.Boolean({
        description:
          'take the volume from the agent that has it: kept out first, its device removed when it answers',
      }),
    ),
  },
  strict,
);

export const DeleteAttachmentQuery = Type.Object(
  {
    force: Type.Optional(
      Type.Boolean({ description: 'also when the device is open or the agent does not answer' }),
    ),
  },
  strict,
);

export const AttachmentView = Type.Object({
  id: Type.String(),
  volume: Type.String(),
  agent: Type.String(),
  device: Nullable(Type.String()),
  datapath: Type.String({ description: 'the mode in use; until attached, the one asked for' }),
  state: AttachmentStateSchema,
  io: Type.Enum(['ok', 'waiting', 'failing', 'recovering', 'unknown'], {
    description:
      'waiting: no in-sync replica answers; failing: for longer than ioTimeoutMs; recovering: the agent is being replaced',
  }),
  queues: Type.Integer({ description: 'as asked for; 0: the default of the agent' }),
  queueDepth: Type.Integer({ description: 'as asked for; 0: the default of the agent' }),
  blockSizeBytes: Type.Integer({ description: 'as asked for; 0: the default of the agent' }),
  readOnly: Type.Boolean(),
  ioTimeoutMs: Type.Integer({ description: '0: I/O waits' }),
  generation: Type.Integer(),
  createdAt: Type.String(),
});
export type AttachmentView = Static<typeof AttachmentView>;

const Liveness = Type.Enum(['online', 'offline']);

export const NodeView = Type.Object({
  id: Type.String(),
  state: Liveness,
  nbd: Type.String({ description: 'host:port of its NBD server' }),
  zone: Type.String(),
  capacityBytes: Type.Integer(),
  freeBytes: Type.Integer({ description: 'what new replicas may still claim' }),
  draining: Type.Boolean({ description: 'its replicas move to other nodes, and it takes no new ones' }),
  replicas: Type.Integer({ description: 'replicas that are there' }),
  version: Type.String(),
});

export type NodeView = Static<typeof NodeView>;

export const EventsQuery = Type.Object(
  {
    volume: Type.Optional(
      Type.String({ minLength: 1, description: 'id of a volume: only what concerns it, also after its end' }),
    ),
    after: Type.Optional(
      Type.String({
        pattern: '^[0-9]{1,15}$',
        description:
          'the id of an event: begin with what is kept since then, 0 with all; else with what happens now',
      }),
    ),
  },
  strict,
);

export const EventsHeaders = Type.Object({
  'last-event-id': Type.Optional(
    Type.String({
      pattern: '^[0-9]{1,15}$',
      description: 'as `after`, which it overrides: the id of an event',
    }),
  ),
});

/** The data of one message. */
export const EventView = Type.Intersect([
  Type.Object({ id: Type.Integer({ description: 'rises by one with each event' }) }),
  RecordedEvent,
]);

export const AgentView = Type.Object({
  id: Type.String(),
  state: Liveness,
  host: Type.String(),
  datapaths: Type.Array(Type.String(), { description: 'modes that its host offers, best first' }),
  version: Type.String(),
});
