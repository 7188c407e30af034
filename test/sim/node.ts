/** A storage node: one process after the other on one disk, and its conversation with the control plane. */
import type { NodeAction } from '@blockwire/control/domain/context.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { SimControl } from './control.ts';
import { Disk } from './disk.ts';
import type { Mutation } from './mutations.ts';
import { type Connection, connect, type Network, type Peer, Process } from './network.ts';
import type { RepairOrder } from './repairs.ts';
import { REGION_WORDS } from './replica.ts';
import { type Reply, ServedReplica } from './served.ts';
import type { ToClient, ToNode } from './wire.ts';
import type { World } from './world.ts';

const HEARTBEAT_MS = 200;
const TICK_MS = 250;

export interface Cluster {
  readonly world: World;
  readonly network: Network;
  readonly control: SimControl;
  readonly mutation: Mutation;
  readonly checkpointMs: number;
  /** Of a device. */
  readonly queueCount: number;
  node(id: string): SimNode;
  /** A writer hears that what was not flushed may be lost. */
  onLoss(lossEpoch: number): void;
}

export class SimNode {
  readonly id: string;
  readonly #cluster: Cluster;
  #disk: Disk | null = null;
  #daemon: NodeDaemon | null = null;

  constructor(cluster: Cluster, id: string) {
    this.#cluster = cluster;
    this.id = id;
  }

  get process(): Process | null {
    return this.#daemon?.process ?? null;
  }

  /** What its replica is on; null without one. */
  get disk(): Disk | null {
    return this.#disk;
  }

  /** An empty replica. */
  createReplica({ generation, epoch }: { readonly generation: number; readonly epoch: number }): Disk {
    this.#disk = new Disk(this.#cluster.world, REGION_WORDS, {
      ...{ generation, epoch, role: 'inSync', joinedEpoch: epoch, uncleanEpoch: null },
    });
    return this.#disk;
  }

  deleteReplica(): void {
    this.#disk = null;
  }

  start(): void {
    if (this.#daemon !== null) return;
    this.#daemon = new NodeDaemon(this.#cluster, this);
  }

  /** @param power whether the machine fails, and with it the disk's cache */
  kill(power: boolean): void {
    if (power) this.disk?.powerFailed();
    else this.disk?.processKilled();
    if (this.#daemon !== null) {
      this.#daemon.process.hasLostPower = power;
      this.#daemon.process.kill();
    }
    this.#daemon = null;
  }

  accept(connection: Connection<ToClient>): Peer<ToNode> {
    return this.#daemon!.accept(connection);
  }

  command(process: Process, commandId: string, action: NodeAction): void {
    if (this.#daemon?.process === process) this.#daemon.command(commandId, action);
  }

  repair(process: Process, order: RepairOrder): void {
    if (this.#daemon?.process === process) this.#daemon.repair(order);
  }
}

class NodeDaemon {
  readonly process: Process;
  readonly #cluster: Cluster;
  readonly #node: SimNode;
  #served: ServedReplica | null;
  /** Commands, one at a time. */
  readonly #turns: (() => void)[] = [];
  #isBusy = false;

  constructor(cluster: Cluster, node: SimNode) {
    const { world } = cluster;
    const { id, disk } = node;
    this.#cluster = cluster;
    this.#node = node;
    this.process = new Process(world, id);
    this.#served = disk === null ? null : this.#serve(disk);
    this.process.every(TICK_MS, () => this.#served?.tick());
    cluster.control.members.join({
      ...{ kind: 'node', id, process: this.process, heartbeatMs: HEARTBEAT_MS },
      replica: () => this.#served?.state ?? null,
    });
  }

  accept(connection: Connection<ToClient>): Peer<ToNode> {
    if (this.#served !== null) return this.#served.sessions.accept(connection);
    return {
      received: () => connection.send({ type: 'refused', code: 'BW_REPLICA_NOT_FOUND' }),
      closed: () => {},
    };
  }

  repair(order: RepairOrder): void {
    this.#served?.repairs.order(order);
  }

  command(commandId: string, action: NodeAction): void {
    const complete: Reply = (error) =>
      this.#cluster.control.members.completeNode(this.process, this.#node.id, commandId, error);
    this.#turns.push(() => {
      // Others do not wait for its end: one of them may be what ends it.
      const isOnlyBegun = action.kind === 'reconcile';
      this.#carryOut(action, (error) => {
        complete(error);
        if (!isOnlyBegun) this.#nextTurn();
      });
      if (isOnlyBegun) this.#nextTurn();
    });
    if (!this.#isBusy) this.#nextTurn();
  }

  #nextTurn(): void {
    const turn = this.#turns.shift();
    this.#isBusy = turn !== undefined;
    turn?.();
  }

  #carryOut(action: NodeAction, reply: Reply): void {
    try {
      if (action.kind === 'createReplica') this.#create(action, reply);
      else if (action.kind === 'deleteReplica') this.#delete(reply);
      else this.#order(this.#replica(), action, reply);
    } catch (error) {
      reply(toBlockwireError(error));
    }
  }

  #order(served: ServedReplica, action: NodeAction, reply: Reply): void {
    if (action.kind === 'installEpoch') served.install(action, reply);
    else if (action.kind === 'rebuild') served.rebuild(action, reply);
    else if (action.kind === 'reconcile') served.reconcile(action, reply);
    else reply(null);
  }

  #create(action: Extract<NodeAction, { kind: 'createReplica' }>, reply: Reply): void {
    const { world } = this.#cluster;
    world.note(6, action.epoch, () => `${this.#node.id} creates a replica at epoch ${action.epoch}`);
    this.#served ??= this.#serve(this.#node.createReplica(action));
    reply(null);
  }

  #delete(reply: Reply): void {
    const served = this.#served;
    if (served === null) {
      reply(null);
      return;
    }
    served.end(() => {
      this.#cluster.world.note(7, 0, () => `${this.#node.id} deletes its replica`);
      this.#served = null;
      this.#node.deleteReplica();
      reply(null);
    });
  }

  #serve(disk: Disk): ServedReplica {
    return new ServedReplica(this.#cluster, this.#node.id, this.process, disk);
  }

  #replica(): ServedReplica {
    if (this.#served !== null) return this.#served;
    throw new BlockwireError('BW_REPLICA_NOT_FOUND', 'there is no replica here');
  }
}

/** A connection to a node's present process; refused when there is none. */
export function openConnection(options: {
  readonly world: World;
  readonly network: Network;
  readonly client: Process;
  readonly node: SimNode;
  readonly clientPeer: Peer<ToClient>;
}): Connection<ToNode> {
  const { world, network, client, node, clientPeer } = options;
  const server = node.process;
  if (server === null) {
    world.after(world.delay(1), () => client.enter(() => clientPeer.closed()));
    return { send: () => {}, close: () => {} };
  }
  return connect<ToNode, ToClient>(world, network, {
    ...{ client, server, clientPeer },
    accept: (connection) => node.accept(connection),
  });
}
