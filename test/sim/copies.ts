/**
 * What a node copies to its replica from another one: rebuilds and reconciles, one at a time. A newer one ends the older one, and
 * begins when nothing of that is at work any more.
 */
import type { ResyncOrder } from '@blockwire/control/domain/context.ts';
import type { Installed } from '@blockwire/node/replication/admission.ts';
import type { FreshMap } from '@blockwire/node/replication/fresh.ts';
import { Resync } from '@blockwire/node/replication/resync.ts';
import { CHUNK_BYTES, isUsed, SIZE_BYTES } from './geometry.ts';
import type { Mutation } from './mutations.ts';
import type { Connection, Peer, Process } from './network.ts';
import { type SimReplica, unitsOf } from './replica.ts';
import type { ToClient, ToNode } from './wire.ts';
import type { World } from './world.ts';

const STALL_MS_MAX = 1500;

export interface CopyOrder {
  /** The same again is the one under way. */
  readonly key: string;
  readonly source: ResyncOrder;
  readonly sinceEpoch: number | null;
  readonly fresh: FreshMap | null;
  readonly plan: (regions: readonly number[]) => number[];
}

interface Copy {
  readonly order: CopyOrder;
  /** Nothing new of it begins. */
  cancel: (reason: string) => void;
  /** Called when nothing of it is at work. */
  readonly ended: ((error: string | null) => void)[];
}

export class Copies {
  readonly #world: World;
  readonly #process: Process;
  readonly #replica: SimReplica;
  readonly #mutation: Mutation;
  readonly #installed: () => Installed;
  readonly #openPeer: (nodeId: string, peer: Peer<ToClient>) => Connection<ToNode>;
  #copy: Copy | null = null;
  #attempts = 0;

  constructor(options: {
    readonly world: World;
    readonly process: Process;
    readonly replica: SimReplica;
    readonly mutation: Mutation;
    readonly installed: () => Installed;
    readonly openPeer: (nodeId: string, peer: Peer<ToClient>) => Connection<ToNode>;
  }) {
    this.#world = options.world;
    this.#process = options.process;
    this.#replica = options.replica;
    this.#mutation = options.mutation;
    this.#installed = options.installed;
    this.#openPeer = options.openPeer;
  }

  /** The key of the one under way. */
  get key(): string | null {
    return this.#copy?.order.key ?? null;
  }

  start(order: CopyOrder, ended: (error: string | null) => void): void {
    const before = this.#copy;
    if (before?.order.key === order.key) {
      before.ended.push(ended);
      return;
    }
    let cancelled: string | null = null;
    const copy: Copy = {
      order,
      cancel: (reason) => {
        cancelled ??= reason;
      },
      ended: [ended],
    };
    this.#copy = copy;
    const begin = (): void => {
      if (cancelled === null) this.#run(copy);
      else this.#end(copy, cancelled);
    };
    if (before === null) {
      begin();
      return;
    }
    before.ended.push(begin);
    before.cancel('another one begins');
  }

  /** Ends the one under way; `done` runs when nothing of it is at work, at once without one. */
  cancel(reason: string, done: () => void = () => {}): void {
    const copy = this.#copy;
    copy?.ended.push(done);
    if (copy === null) done();
    else copy.cancel(reason);
  }

  #end(copy: Copy, error: string | null): void {
    const { key, source } = copy.order;
    if (this.#copy === copy) this.#copy = null;
    this.#world.note(
      ...[2, 0],
      () => `${this.#process.name} ${key} from ${source.sourceNodeId} ended: ${error ?? 'done'}`,
    );
    for (const ended of copy.ended) ended(error);
  }

  #run(copy: Copy): void {
    const world = this.#world;
    const { key, source, sinceEpoch, fresh, plan } = copy.order;
    const attempt = ++this.#attempts;
    const owner = -attempt;
    let resync: Resync | null = null;
    let isOver = false;
    let progressAt = world.now;
    const chunks = new Map<number, { offset: number; length: number; values: readonly number[] }>();
    let written: { units: number[]; values: number[] }[] = [];
    const end = (error: string | null): void => {
      if (isOver) return;
      isOver = true;
      connection.close();
      // What is at work runs to its end.
      this.#replica.drop(new Set([owner]), () => this.#end(copy, error));
    };
    copy.cancel = (reason) => {
      if (resync === null) end(reason);
      else resync.cancel(reason);
    };
    const begin = (regions: readonly number[]): void => {
      const planned = plan(regions).filter(isUsed);
      world.note(3, planned.length, () => `${this.#process.name} ${key} copies regions ${planned.join(' ')}`);
      const started = new Resync({
        ...{ regions: planned, sizeBytes: SIZE_BYTES, chunkBytes: CHUNK_BYTES, parallel: 3, fresh },
        host: {
          read: (slot, offset, length) => {
            chunks.set(slot, { offset, length, values: [] });
            connection.send({ type: 'read', tag: slot, offset, length });
          },
          acquire: (slot, offset, length) =>
            this.#replica.exclusively({
              owner,
              range: { offset, length },
              parts: () => {
                written = [];
                started.granted(slot);
                return written;
              },
              ended: (outcome) => started.written(slot, outcome === 'done' ? null : outcome),
            }),
          write: (slot, parts) => {
            const chunk = chunks.get(slot)!;
            const all = unitsOf(chunk);
            written = parts.map((part) => {
              const units = unitsOf(part);
              return { units, values: units.map((unit) => chunk.values[all.indexOf(unit)]!) };
            });
          },
          flush: () => {
            if (this.#mutation === 'no-flush-after-rebuild') started.flushed(null);
            else this.#replica.flush(() => started.flushed(null));
          },
          ended: end,
        },
      });
      resync = started;
      started.start();
    };
    const connection = this.#openPeer(source.sourceNodeId, {
      received: (message) => {
        progressAt = world.now;
        if (isOver) return;
        if (message.type === 'refused') {
          copy.cancel(`refused: ${message.code}`);
        } else if (message.type === 'welcome') {
          connection.send({ type: 'status', sinceEpoch });
        } else if (message.type === 'regions') {
          begin(message.regions);
        } else if (message.type === 'data') {
          chunks.set(message.tag, { ...chunks.get(message.tag)!, values: message.values });
          resync?.readDone(message.tag, null);
        } else if (message.type === 'done') {
          resync?.readDone(message.tag, 'the source cannot read it');
        }
      },
      closed: () => copy.cancel('the source went away'),
    });
    const { generation, epoch } = this.#installed();
    const claim = { generation, epoch, kind: 'peer' } as const;
    connection.send({ type: 'hello', claim, link: `${this.#process.name}/peer`, attempt });
    const watch = (): void => {
      if (isOver) return;
      if (world.now - progressAt > STALL_MS_MAX) copy.cancel('the source is silent');
      else this.#process.after(STALL_MS_MAX / 3, watch);
    };
    watch();
  }
}
