/** A device's way to one replica: one connection after the other, each a session of its own. */
import type { Mirror, ReplicaLink } from '@blockwire/agent/datapath/mirror.ts';
import { Operation, type RequestTable } from '@blockwire/agent/datapath/request.ts';
import type { Mark } from '@blockwire/node/replication/marks.ts';
import type { Connection, Process } from './network.ts';
import type { Cluster } from './node.ts';
import { openConnection, type SimNode } from './node.ts';
import type { ToClient, ToNode } from './wire.ts';

const RETRY_MS = 60;
const TIMEOUT_MS = 400;

export interface LinkHost {
  readonly cluster: Cluster;
  readonly process: Process;
  readonly requests: RequestTable;
  readonly mirror: Mirror;
  /** Names the queue towards nodes. */
  readonly name: string;
  readonly generation: number;
  readonly epoch: number;
  readonly mark: Mark;
  valueOf(tag: number): number;
  lengthOf(tag: number): number;
  readData(tag: number, values: readonly number[]): void;
  linkUp(replica: number): void;
}

type State = 'closed' | 'connecting' | 'up' | 'waiting';

export class SimLink implements ReplicaLink {
  readonly #host: LinkHost;
  readonly #replica: number;
  readonly #node: SimNode;
  readonly #inFlight = new Map<number, number>();
  #state: State = 'closed';
  #wanted = false;
  #attempt = 0;
  #connection: Connection<ToNode> | null = null;

  constructor(host: LinkHost, replica: number, node: SimNode) {
    this.#host = host;
    this.#replica = replica;
    this.#node = node;
  }

  get inFlightCount(): number {
    return this.#inFlight.size;
  }

  get isUp(): boolean {
    return this.#state === 'up';
  }

  get isClosed(): boolean {
    return this.#state === 'closed';
  }

  /** Connects, and again until it is closed. */
  start(): void {
    this.#wanted = true;
    if (this.#state === 'closed') this.#connect();
  }

  close(): void {
    this.#wanted = false;
    if (this.#state === 'up' || this.#state === 'connecting') this.#fail('closed');
    else this.#state = 'closed';
  }

  /** The connection is reset. */
  break(): void {
    if (this.isUp) this.#fail('the connection was reset');
  }

  submit(tag: number): void {
    if (this.#inFlight.has(tag)) return;
    const { requests, cluster } = this.#host;
    this.#inFlight.set(tag, cluster.world.now);
    const offset = requests.offsetBytes[tag]!;
    const length = this.#host.lengthOf(tag);
    const operation = requests.operation[tag];
    if (operation === Operation.FLUSH) this.#connection!.send({ type: 'flush', tag });
    else if (operation === Operation.READ) this.#connection!.send({ type: 'read', tag, offset, length });
    else this.#connection!.send({ type: 'write', tag, offset, length, value: this.#host.valueOf(tag) });
  }

  sendMark(number: number, epoch: number): void {
    if (this.isUp) this.#connection!.send({ type: 'mark', mark: { number, epoch } });
  }

  sendCheckpoint(number: number, epoch: number): void {
    if (this.isUp) this.#connection!.send({ type: 'checkpoint', mark: { number, epoch } });
  }

  #connect(): void {
    const { cluster, process, name, generation, epoch } = this.#host;
    this.#state = 'connecting';
    const attempt = ++this.#attempt;
    const isCurrent = (): boolean => attempt === this.#attempt && this.#connection !== null;
    const startedAt = cluster.world.now;
    const connection = openConnection({
      ...{ world: cluster.world, network: cluster.network, client: process, node: this.#node },
      clientPeer: {
        received: (message) => isCurrent() && this.#received(message),
        closed: () => isCurrent() && this.#fail('the connection broke'),
      },
    });
    this.#connection = connection;
    connection.send({ type: 'hello', claim: { generation, epoch, kind: 'writer' }, link: name, attempt });
    const watch = (): void => {
      if (!isCurrent()) return;
      const since = this.isUp ? Math.min(...this.#inFlight.values()) : startedAt;
      if (cluster.world.now - since > TIMEOUT_MS) this.#fail('it does not answer');
      else process.after(TIMEOUT_MS / 3, watch);
    };
    process.after(TIMEOUT_MS / 3, watch);
  }

  #received(message: ToClient): void {
    const { mirror, mark } = this.#host;
    switch (message.type) {
      case 'welcome':
        this.#state = 'up';
        // Before any write: what this connection carries from now on was sent behind it.
        if (mark.number > 0) this.#connection!.send({ type: 'mark', mark });
        this.#host.linkUp(this.#replica);
        break;
      case 'refused':
        this.#fail(message.code);
        break;
      case 'done':
        if (this.#inFlight.delete(message.tag)) mirror.answered(this.#replica, message.tag, message.error);
        break;
      case 'data':
        if (this.#inFlight.delete(message.tag)) {
          this.#host.readData(message.tag, message.values);
          mirror.answered(this.#replica, message.tag, 0);
        }
        break;
      default:
    }
  }

  #fail(reason: string): void {
    const { process, mirror, cluster } = this.#host;
    const connection = this.#connection;
    this.#connection = null;
    this.#inFlight.clear();
    this.#state = this.#wanted ? 'waiting' : 'closed';
    connection?.close();
    if (this.#wanted) {
      process.after(cluster.world.delay(RETRY_MS), () => {
        if (this.#state !== 'waiting') return;
        if (this.#wanted) this.#connect();
        else this.#state = 'closed';
      });
    }
    mirror.linkDown(this.#replica, reason);
  }
}
