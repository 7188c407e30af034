/**
 * What happens to volumes, replicas, nodes and agents. A change of a record and its events are one commit, so none is missed
 * and none is told that did not happen; whoever listens in this process is told after it.
 */
import { EventEmitter } from 'node:events';
import type { Logger } from '@blockwire/shared/log.ts';
import { type Static, Type } from 'typebox';
import type { Change, CommitResult, EventPage, MetadataStore, StoredRecord } from '../store/store.ts';

const ofVolume = { volume: Type.String({ description: 'id of the volume' }) };
const ofReplica = { ...ofVolume, node: Type.String({ description: 'id of the node' }) };
const ofAttachment = { ...ofVolume, agent: Type.String(), attachment: Type.String() };
const epoch = Type.Integer({ description: "the volume's, from this change on" });
const regions = Type.Integer({ description: 'of 1 MiB' });

/** Names and fields as REST shows them. */
export const ControlEvent = Type.Union([
  Type.Object({
    type: Type.Enum(['volume.created', 'volume.available', 'volume.deleted', 'volume.scrubbing']),
    ...ofVolume,
  }),
  Type.Object({
    type: Type.Enum([
      ...(['volume.attaching', 'volume.attached', 'volume.detaching', 'volume.detached'] as const),
      ...(['attachment.lost', 'attachment.resumed', 'attachment.taken'] as const),
    ]),
    ...ofAttachment,
  }),
  Type.Object({
    type: Type.Literal('volume.adopted', { description: 'a node knew a later membership than the store' }),
    ...ofReplica,
    generation: Type.Integer(),
    epoch,
  }),
  Type.Object({ type: Type.Literal('volume.resized'), ...ofVolume, sizeBytes: Type.Integer() }),
  Type.Object({
    type: Type.Literal('volume.scrubbed'),
    ...ofVolume,
    mismatchedRegions: regions,
    repairedRegions: regions,
  }),
  Type.Object({
    type: Type.Enum(['snapshot.created', 'snapshot.deleted', 'snapshot.failed']),
    ...ofVolume,
    snapshot: Type.String(),
  }),
  Type.Object({
    type: Type.Enum(['replica.rebuilding', 'replica.inSync', 'replica.promoted']),
    ...ofReplica,
    epoch,
  }),
  Type.Object({
    type: Type.Enum(['replica.stale', 'replica.lossy']),
    ...ofReplica,
    epoch,
    reason: Type.String(),
  }),
  Type.Object({ type: Type.Enum(['replica.removed', 'replica.deleted']), ...ofReplica }),
  Type.Object({
    type: Type.Literal('replica.replacing'),
    ...ofReplica,
    replaces: Type.String({ description: 'the node whose replica it is to take the place of' }),
  }),
  Type.Object({ type: Type.Enum(['replica.damaged', 'replica.repaired']), ...ofReplica, regions }),
  Type.Object({
    type: Type.Enum(['node.online', 'node.offline', 'node.draining', 'node.kept']),
    node: Type.String(),
  }),
  Type.Object({ type: Type.Enum(['agent.online', 'agent.offline']), agent: Type.String() }),
]);
export type ControlEvent = Static<typeof ControlEvent>;

/** An event as it is stored. */
export const RecordedEvent = Type.Intersect([
  Type.Object({ at: Type.String({ description: 'time of the change' }) }),
  ControlEvent,
]);
export type RecordedEvent = Static<typeof RecordedEvent>;

/** Emits `change` after the commit that made it true. */
export class ControlEvents extends EventEmitter<{ change: [ControlEvent] }> {
  constructor() {
    super();
    // One for each that follows them over REST.
    this.setMaxListeners(0);
  }

  publish(event: ControlEvent): void {
    this.emit('change', event);
  }
}

/** The metadata store as the domain has it: a commit's events get their time, and are told once it is done. */
export class EventStore implements MetadataStore {
  readonly #store: MetadataStore;
  readonly #events: ControlEvents;
  readonly #log: Logger;
  readonly #now: () => number;

  constructor(
    store: MetadataStore,
    parts: { readonly events: ControlEvents; readonly log: Logger; readonly now: () => number },
  ) {
    this.#store = store;
    this.#events = parts.events;
    this.#log = parts.log;
    this.#now = parts.now;
  }

  get(key: string): Promise<StoredRecord | null> {
    return this.#store.get(key);
  }

  list(prefix: string): Promise<StoredRecord[]> {
    return this.#store.list(prefix);
  }

  events(afterId: number, countMax: number): Promise<EventPage> {
    return this.#store.events(afterId, countMax);
  }

  async commit(changes: readonly Change[], events: readonly ControlEvent[] = []): Promise<CommitResult> {
    const result = await this.#store.commit(changes, this.#recorded(events));
    if (result.committed) for (const event of events) this.#events.publish(event);
    return result;
  }

  /** What changes no record, such as who is online: told at once, and recorded as soon as that can be. */
  note(event: ControlEvent): void {
    this.#events.publish(event);
    this.#store.commit([], this.#recorded([event])).catch((error: unknown) => {
      this.#log.error({ err: error, ...event }, 'an event is not recorded');
    });
  }

  close(): Promise<void> {
    return this.#store.close();
  }

  #recorded(events: readonly ControlEvent[]): RecordedEvent[] {
    const at = new Date(this.#now()).toISOString();
    return events.map((event) => ({ at, ...event }));
  }
}
