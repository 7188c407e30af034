/** A node's damage: found by reads and by going through the disk, reported, repaired from the peer that it is told. */
import type { SessionClaim } from '@blockwire/node/replication/admission.ts';
import type { ReplicaMembership } from '@blockwire/node/replication/membership.ts';
import { Repair, type RepairHost } from '@blockwire/node/replication/repair.ts';
import { REGION_SIZE_BYTES } from '@blockwire/node/store/region-table.ts';
import { offsetOf, REGIONS, UNITS_PER_REGION } from './geometry.ts';
import type { Mutation } from './mutations.ts';
import type { Connection, Peer, Process } from './network.ts';
import { type HeldRange, type SimReplica, unitsOf } from './replica.ts';
import type { ToClient, ToNode } from './wire.ts';
import type { World } from './world.ts';

const STALL_MS_MAX = 1500;
/** How long regions may take to become calm, and how often that is asked. */
const CALM_MS_MAX = 1000;
const AGAIN_MS = 20;

export interface RepairOrder {
  readonly generation: number;
  readonly epoch: number;
  readonly sourceNodeId: string;
  readonly regions: readonly number[];
}

export class Repairs {
  readonly #world: World;
  readonly #process: Process;
  readonly #replica: SimReplica;
  readonly #membership: ReplicaMembership;
  readonly #mutation: Mutation;
  readonly #openPeer: (nodeId: string, peer: Peer<ToClient>) => Connection<ToNode>;
  readonly #report: (regions: readonly number[]) => void;
  readonly #damaged = new Set<number>();
  #running: RepairOrder | null = null;
  #scrubbed = 0;
  #attempts = 0;

  constructor(options: {
    readonly world: World;
    readonly process: Process;
    readonly replica: SimReplica;
    readonly membership: ReplicaMembership;
    readonly mutation: Mutation;
    readonly openPeer: (nodeId: string, peer: Peer<ToClient>) => Connection<ToNode>;
    readonly report: (regions: readonly number[]) => void;
  }) {
    this.#world = options.world;
    this.#process = options.process;
    this.#replica = options.replica;
    this.#membership = options.membership;
    this.#mutation = options.mutation;
    this.#openPeer = options.openPeer;
    this.#report = options.report;
  }

  /** Checksums of these units do not match. */
  note(units: readonly number[]): void {
    for (const unit of units) this.#damaged.add(Math.floor(offsetOf(unit) / REGION_SIZE_BYTES));
  }

  /** Goes through one region, and reports what there is to report. */
  tick(): void {
    const first = (this.#scrubbed++ % REGIONS.length) * UNITS_PER_REGION;
    const units = Array.from({ length: UNITS_PER_REGION }, (_, i) => first + i);
    if (this.#replica.read(units) === null) this.note(units);
    if (this.#damaged.size > 0 && this.#running === null) this.#report([...this.#damaged]);
  }

  order(order: RepairOrder): void {
    if (this.#running !== null) return;
    const { sourceNodeId, generation, epoch } = order;
    const mutation = this.#mutation;
    let held: HeldRange | null = null;
    let values: readonly number[] = [];
    let progressAt = this.#world.now;
    let hasFailed = false;
    const startedAt = this.#world.now;
    const rangeOf = (region: number) => ({ offset: region * REGION_SIZE_BYTES, length: REGION_SIZE_BYTES });
    const connection = this.#openPeer(sourceNodeId, {
      received: (message) => {
        progressAt = this.#world.now;
        if (message.type === 'welcome') repair.start();
        else if (message.type === 'refused') fail(() => repair.cancel());
        else if (message.type === 'done') fail(() => repair.readDone('the peer cannot read it'));
        else if (message.type === 'data') {
          ({ values } = message);
          repair.readDone(null);
        }
      },
      closed: () => fail(() => repair.cancel()),
    });
    const isOfOrder = (): boolean => {
      const { installed } = this.#membership;
      return installed.generation === generation && installed.epoch === epoch;
    };
    const fail = (run: () => void): void => {
      hasFailed = true;
      run();
    };
    const end = (left: readonly number[]): void => {
      if (this.#running !== order) return;
      const mayBecomeCalm = isOfOrder() && this.#world.now - startedAt < CALM_MS_MAX;
      if (left.length > 0 && !hasFailed && mayBecomeCalm) {
        this.#process.after(AGAIN_MS, () => {
          if (this.#running !== order) return;
          if (hasFailed) end(left);
          else again(left);
        });
        return;
      }
      this.#running = null;
      connection.close();
      this.#world.note(4, left.length, () => `${this.#process.name} repair ended, left: ${left.join(' ')}`);
      for (const region of order.regions) if (!left.includes(region)) this.#damaged.delete(region);
    };
    const host: RepairHost = {
      acquire: (region) => {
        const owner = -1_000_000 - ++this.#attempts;
        if (mutation === 'repair-unlocked') repair.granted();
        else
          this.#replica.hold({
            ...{ owner, range: rangeOf(region) },
            granted: (range) => {
              held = range;
              repair.granted();
            },
          });
      },
      isCalm: (region) => {
        const hasIntent = [...this.#replica.table.intents()].includes(region);
        return (
          (!hasIntent || mutation === 'repair-over-intents') &&
          (isOfOrder() || mutation === 'repair-at-old-epoch')
        );
      },
      read: (region) => {
        this.#world.note(5, region, () => `${this.#process.name} repairs ${region} from ${sourceNodeId}`);
        connection.send({ type: 'read', tag: 0, ...rangeOf(region) });
      },
      write: (region) => {
        const units = unitsOf(rangeOf(region));
        const write = (range: HeldRange): void =>
          range.write(units, values, (outcome) => repair.written(outcome === 'done' ? null : outcome));
        if (held !== null) write(held);
        else
          this.#replica.hold({
            ...{ owner: -1_000_000, range: rangeOf(region) },
            granted: (range) => {
              held = range;
              write(range);
            },
          });
      },
      release: () => {
        held?.release();
        held = null;
      },
      ended: end,
    };
    let repair = new Repair(order.regions, host);
    const again = (left: readonly number[]): void => {
      repair = new Repair(left, host);
      repair.start();
    };
    this.#running = order;
    const claim: SessionClaim = { generation, epoch, kind: 'peer' };
    const link = `${this.#process.name}/repair`;
    connection.send({ type: 'hello', claim, link, attempt: ++this.#attempts });
    const watch = (): void => {
      if (this.#running !== order) return;
      if (this.#world.now - progressAt > STALL_MS_MAX) fail(() => repair.cancel());
      else this.#process.after(STALL_MS_MAX / 3, watch);
    };
    watch();
  }
}
