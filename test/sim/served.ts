/**
 * A replica as a node's process serves it: what is installed, who is let in, what is copied to it. Gone when the process ends,
 * or when the replica is deleted.
 */
import type { NodeAction } from '@blockwire/control/domain/context.ts';
import { endsCopies, type Installation, ReplicaMembership } from '@blockwire/node/replication/membership.ts';
import { planRebuild, planReconcile } from '@blockwire/node/replication/resync.ts';
import { REGION_SIZE_BYTES } from '@blockwire/node/store/region-table.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Copies } from './copies.ts';
import type { Disk } from './disk.ts';
import { offsetOf } from './geometry.ts';
import type { Members } from './members.ts';
import type { Connection, Peer, Process } from './network.ts';
import { type Cluster, openConnection, type SimNode } from './node.ts';
import { Repairs } from './repairs.ts';
import { SimReplica } from './replica.ts';
import { ForgetfulMap, Sessions } from './sessions.ts';
import type { ToClient, ToNode } from './wire.ts';

const RETRY_MS = 200;

export type Reply = (error: BlockwireError | null) => void;

export class ServedReplica {
  readonly sessions: Sessions;
  readonly repairs: Repairs;
  readonly #process: Process;
  readonly #cluster: Cluster;
  readonly #id: string;
  readonly #disk: Disk;
  readonly #membership: ReplicaMembership;
  readonly #replica: SimReplica;
  readonly #copies: Copies;
  #isDeleted = false;

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
    const openPeer = (nodeId: string, peer: Peer<ToClient>): Connection<ToNode> =>
      this.#openPeer(cluster.node(nodeId), peer);
    this.#copies = new Copies({
      ...{ world, process, replica: this.#replica, mutation, openPeer },
      installed: () => this.#membership.installed,
    });
    this.repairs = new Repairs({
      ...{ world, process, replica: this.#replica, membership: this.#membership, mutation, openPeer },
      report: (regions) => cluster.control.members.reportDamage(process, { nodeId: id, regions }),
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
    this.#copies.cancel('the replica is being removed', () => this.sessions.cut('all', 0, done));
  }

  install(action: Extract<NodeAction, { kind: 'installEpoch' }>, reply: Reply): void {
    const installation = this.#membership.prepare(action);
    const { installed } = installation;
    this.#disk.writeDescriptor(installed, () =>
      this.#process.enter(() => {
        if (endsCopies(this.#membership.installed, installed))
          this.#copies.cancel('the membership has changed');
        const isReconciling = this.#copies.key?.startsWith('reconcile/') ?? false;
        const commit = (): void => this.#commit(installation, reply);
        // Its order has been given up, and this replica may be the source of the next one.
        if (isReconciling) this.#copies.cancel('a membership is installed', commit);
        else commit();
      }),
    );
  }

  #commit(installation: Installation, reply: Reply): void {
    const { mutation, world } = this.#cluster;
    const { installed, cut } = installation;
    this.#membership.commit(installation);
    if (mutation === 'ignore-fresh' && this.#membership.fresh !== null) this.#forgetFresh();
    world.note(1, installed.epoch, () => `${this.#id} installs ${JSON.stringify(installed)}`);
    const isSkipped =
      (mutation === 'no-cut-on-rebuild' && cut === 'all') ||
      (mutation === 'no-fence' && cut === 'olderGenerations');
    this.sessions.cut(isSkipped ? 'none' : cut, installed.generation, () =>
      this.#replica.installEpoch(installed.epoch, () => reply(null)),
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
    if (this.#copies.key !== key) {
      const plan = (regions: readonly number[]): number[] =>
        this.#cluster.mutation === 'skip-own-intents'
          ? [...regions]
          : planRebuild(this.#replica.table, regions, sinceEpoch);
      this.#copies.start({ key, source: action, sinceEpoch, fresh, plan }, (error) => {
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
    const key = `reconcile/${action.generation}/${action.epoch}/${action.sourceNodeId}`;
    this.#copies.start({ key, source: action, sinceEpoch: null, fresh: null, plan }, (error) =>
      reply(error === null ? null : new BlockwireError('BW_PEER_UNREACHABLE', error)),
    );
  }

  #report(report: Parameters<Members['rebuildEnded']>[1]): void {
    this.#cluster.control.members.rebuildEnded(this.#process, report, (isAnswered) => {
      if (!isAnswered && !this.#isDeleted) this.#process.after(RETRY_MS, () => this.#report(report));
    });
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
