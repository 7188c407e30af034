/**
 * A replica as a node's process serves it: what is installed, who is let in, what is copied to it. Gone when the process ends,
 * or when the replica is deleted.
 */
import type { NodeAction, ResyncOrder } from '@blockwire/control/domain/context.ts';
import { endsCopies, ReplicaMembership } from '@blockwire/node/replication/membership.ts';
import { planRebuild, planReconcile, Resync } from '@blockwire/node/replication/resync.ts';
import { REGION_SIZE_BYTES } from '@blockwire/node/store/region-table.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { SimControl } from './control.ts';
import type { Disk } from './disk.ts';
import { CHUNK_BYTES, isUsed, offsetOf, SIZE_BYTES } from './geometry.ts';
import type { Connection, Peer, Process } from './network.ts';
import { type Cluster, openConnection, type SimNode } from './node.ts';
import { Repairs } from './repairs.ts';
import { SimReplica, unitsOf } from './replica.ts';
import { ForgetfulMap, Sessions } from './sessions.ts';
import type { ToClient, ToNode } from './wire.ts';

const RETRY_MS = 200;
const STALL_MS_MAX = 1500;

export type Reply = (error: BlockwireError | null) => void;

interface Running {
  readonly key: string;
  readonly resync: { cancel(reason: string): void };
}

export class ServedReplica {
  readonly sessions: Sessions;
  readonly repairs: Repairs;
  readonly #process: Process;
  readonly #cluster: Cluster;
  readonly #id: string;
  readonly #disk: Disk;
  readonly #membership: ReplicaMembership;
  readonly #replica: SimReplica;
  #running: Running | null = null;
  #isDeleted = false;
  #attempts = 0;

  /** @param id the node's */
  constructor(cluster: Cluster, id: string, process: Process, disk: Disk) {
    const { world, mutation } = cluster;
    this.#cluster = cluster;
    this.#id = id;
    this.#process = process;
    this.#disk = disk;
    this.#replica = new SimReplica({ process, disk, mutation });
    this.#noticePowerLoss();
    // What does not match in a region that was dirty is taken for the end's doing, and its checksum computed anew: rot
    // there goes unnoticed, which nobody promised otherwise.
    const { table } = this.#replica;
    disk.unrot((unit) => table.isDirty(Math.floor(offsetOf(unit) / REGION_SIZE_BYTES)));
    this.#membership = new ReplicaMembership(disk.installed);
    this.sessions = new Sessions({
      ...{ world, membership: this.#membership, replica: this.#replica, mutation },
      enter: (run) => process.enter(run),
      onDamage: (units) => this.repairs.note(units),
    });
    this.repairs = new Repairs({
      ...{ world, process, replica: this.#replica, membership: this.#membership, mutation },
      openPeer: (nodeId, peer) => this.#openPeer(cluster.node(nodeId), peer),
      report: (regions) => cluster.control.reportDamage(process, { nodeId: id, regions }),
    });
  }

  /** What the node says of it when it registers. */
  get state(): { readonly generation: number; readonly epoch: number; readonly unclean: boolean } {
    const { generation, epoch, uncleanEpoch } = this.#membership.installed;
    return { generation, epoch, unclean: uncleanEpoch !== null };
  }

  tick(): void {
    this.#replica.tick();
    this.repairs.tick();
  }

  /** It is deleted; `done` runs when nothing of it is at work. */
  end(done: () => void): void {
    this.#isDeleted = true;
    this.#running?.resync.cancel('the replica is being removed');
    this.sessions.cut('all', 0, done);
  }

  install(action: Extract<NodeAction, { kind: 'installEpoch' }>, reply: Reply): void {
    const { mutation, world } = this.#cluster;
    const installation = this.#membership.prepare(action);
    const { installed } = installation;
    this.#disk.writeDescriptor(installed, () =>
      this.#process.enter(() => {
        const before = this.#membership.installed;
        this.#membership.commit(installation);
        if (mutation === 'ignore-fresh' && this.#membership.fresh !== null) this.#forgetFresh();
        if (endsCopies(before, installed)) this.#running?.resync.cancel('the membership has changed');
        world.note(1, installed.epoch, () => `${this.#id} installs ${JSON.stringify(installed)}`);
        const isSkipped =
          (mutation === 'no-cut-on-rebuild' && installation.cut === 'all') ||
          (mutation === 'no-fence' && installation.cut === 'olderGenerations');
        this.sessions.cut(isSkipped ? 'none' : installation.cut, installed.generation, () =>
          this.#replica.installEpoch(installed.epoch, () => reply(null)),
        );
      }),
    );
  }

  /** Started, its end is reported. The same one again is the one under way. */
  rebuild(action: Extract<NodeAction, { kind: 'rebuild' }>, reply: Reply): void {
    const { joinedEpoch, sinceEpoch, sourceNodeId } = action;
    const { installed, fresh } = this.#membership;
    if (installed.role !== 'rebuilding' || installed.joinedEpoch !== joinedEpoch) {
      throw new BlockwireError('BW_CONFLICT', 'this rebuild is not the one under way');
    }
    const key = `rebuild/${joinedEpoch}`;
    if (this.#running?.key !== key) {
      const plan = (regions: readonly number[]): number[] =>
        this.#cluster.mutation === 'skip-own-intents'
          ? [...regions]
          : planRebuild(this.#replica.table, regions, sinceEpoch);
      this.#resync({ key, action, sinceEpoch, fresh, plan }, (error) => {
        const { volumeId } = action;
        this.#report({ nodeId: this.#id, volumeId, joinedEpoch, sourceNodeId, error });
      });
    }
    reply(null);
  }

  /** Answered when it has ended. */
  reconcile(action: Extract<NodeAction, { kind: 'reconcile' }>, reply: Reply): void {
    const { installed } = this.#membership;
    if (installed.generation !== action.generation || installed.epoch !== action.epoch) {
      throw new BlockwireError('BW_EPOCH_OLD', 'the membership has changed');
    }
    const plan = (regions: readonly number[]): number[] => planReconcile(this.#replica.table, regions);
    this.#resync({ key: `reconcile/${action.epoch}`, action, sinceEpoch: null, fresh: null, plan }, (error) =>
      reply(error === null ? null : new BlockwireError('BW_PEER_UNREACHABLE', error)),
    );
  }

  #report(report: Parameters<SimControl['rebuildEnded']>[1]): void {
    this.#cluster.control.rebuildEnded(this.#process, report, (isAnswered) => {
      if (!isAnswered && !this.#isDeleted) this.#process.after(RETRY_MS, () => this.#report(report));
    });
  }

  #resync(
    job: {
      readonly key: string;
      readonly action: ResyncOrder;
      readonly sinceEpoch: number | null;
      readonly fresh: ReplicaMembership['fresh'];
      readonly plan: (regions: readonly number[]) => number[];
    },
    ended: (error: string | null) => void,
  ): void {
    const { world, mutation } = this.#cluster;
    const { key, action, fresh, plan } = job;
    this.#running?.resync.cancel('another one begins');
    const owner = -1 - ++this.#attempts;
    let resync: Resync | null = null;
    let isOver = false;
    let progressAt = world.now;
    const chunks = new Map<number, { offset: number; length: number; values: readonly number[] }>();
    const end = (error: string | null): void => {
      if (isOver) return;
      isOver = true;
      if (this.#running === running) this.#running = null;
      connection.close();
      world.note(2, 0, () => `${this.#id} ${key} from ${action.sourceNodeId} ended: ${error ?? 'done'}`);
      ended(error);
    };
    const cancel = (reason: string): void => {
      if (resync === null) end(reason);
      else resync.cancel(reason);
    };
    const running: Running = { key, resync: { cancel } };
    this.#running = running;
    const begin = (regions: readonly number[]): void => {
      const planned = plan(regions).filter(isUsed);
      world.note(3, planned.length, () => `${this.#id} ${key} copies regions ${planned.join(' ')}`);
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
            if (mutation === 'no-flush-after-rebuild') started.flushed(null);
            else this.#replica.flush(() => started.flushed(null));
          },
          ended: end,
        },
      });
      resync = started;
      started.start();
    };
    let written: { units: number[]; values: number[] }[] = [];
    const source = this.#cluster.node(action.sourceNodeId);
    const connection = this.#openPeer(source, {
      received: (message) => {
        progressAt = world.now;
        if (isOver) return;
        if (message.type === 'refused') {
          cancel(`refused: ${message.code}`);
        } else if (message.type === 'welcome') {
          connection.send({ type: 'status', sinceEpoch: job.sinceEpoch });
        } else if (message.type === 'regions') {
          begin(message.regions);
        } else if (message.type === 'data') {
          chunks.set(message.tag, { ...chunks.get(message.tag)!, values: message.values });
          resync?.readDone(message.tag, null);
        } else if (message.type === 'done') {
          resync?.readDone(message.tag, 'the source cannot read it');
        }
      },
      closed: () => cancel('the source went away'),
    });
    const { generation, epoch } = this.#membership.installed;
    const claim = { generation, epoch, kind: 'peer' } as const;
    connection.send({ type: 'hello', claim, link: `${this.#id}/peer`, attempt: this.#attempts });
    const watch = (): void => {
      if (isOver) return;
      if (world.now - progressAt > STALL_MS_MAX) cancel('the source is silent');
      else this.#process.after(STALL_MS_MAX / 3, watch);
    };
    watch();
  }

  #openPeer(source: SimNode, clientPeer: Peer<ToClient>): Connection<ToNode> {
    const { world, network } = this.#cluster;
    return openConnection({ world, network, client: this.#process, node: source, clientPeer });
  }

  #forgetFresh(): void {
    Object.defineProperty(this.#membership, 'fresh', { value: new ForgetfulMap(), configurable: true });
  }

  #noticePowerLoss(): void {
    const { mutation } = this.#cluster;
    const hadIntents = !this.#replica.table.intents().next().done;
    if (this.#disk.lostPower && hadIntents && mutation !== 'ignore-power-loss') {
      const { installed } = this.#disk;
      this.#disk.installed = { ...installed, uncleanEpoch: installed.uncleanEpoch ?? installed.epoch };
    }
    this.#disk.lostPower = false;
  }
}
