/**
 * Regions whose checksums did not match when somebody read them: repaired from a replica in sync. Not stored: a node tells again
 * what it reads again.
 */
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Context } from './context.ts';
import { Pauses } from './pauses.ts';
import { volumes } from './records.ts';
import { resyncOrder } from './resync-order.ts';
import { inSyncReplicas } from './volume-state.ts';

/** Regions of one command. */
const BATCH_MAX = 256;
/** Known of one replica; beyond that the node tells again. */
const REGIONS_MAX = 65_536;

export interface DamageReport {
  readonly nodeId: string;
  readonly volumeId: string;
  readonly regions: readonly number[];
}

export class Damages {
  readonly #context: Context;
  readonly #pauses: Pauses;
  /** By volume and node. */
  readonly #known = new Map<string, Set<number>>();
  readonly #busy = new Set<string>();

  constructor(context: Context) {
    const { timing, now } = context;
    this.#context = context;
    this.#pauses = new Pauses({ minMs: timing.pauseMsMin, maxMs: timing.pauseMsMax, now });
  }

  /** Takes note, and sees to it. */
  report({ nodeId, volumeId, regions }: DamageReport): void {
    const key = `${volumeId}/${nodeId}`;
    const known = this.#known.get(key) ?? new Set();
    for (const region of regions) if (known.size < REGIONS_MAX) known.add(region);
    this.#known.set(key, known);
    const { length } = regions;
    this.#context.store.note({ type: 'replica.damaged', volume: volumeId, node: nodeId, regions: length });
    void this.#repair(key);
  }

  /** Somebody is online: what failed without it may work now. */
  memberCame(): void {
    this.#pauses.forgetAll();
    void this.sweep();
  }

  /** Tries again what is left. Never rejects. */
  async sweep(): Promise<void> {
    await Promise.all([...this.#known.keys()].map((key) => this.#repair(key)));
  }

  async #repair(key: string): Promise<void> {
    if (this.#busy.has(key) || !this.#pauses.isOver(key)) return;
    this.#busy.add(key);
    try {
      while ((this.#known.get(key)?.size ?? 0) > 0) await this.#repairSome(key);
      this.#known.delete(key);
      this.#pauses.forget(key);
    } catch (thrown) {
      const { code, message } = toBlockwireError(thrown);
      this.#pauses.begin(key);
      this.#context.log.warn({ replica: key, code, reason: message }, 'damage is not repaired yet');
    } finally {
      this.#busy.delete(key);
    }
  }

  async #repairSome(key: string): Promise<void> {
    const { store, nodeFleet, timing } = this.#context;
    const [volumeId = '', nodeId = ''] = key.split('/');
    const known = this.#known.get(key)!;
    const volume = (await volumes.get(store, volumeId))?.value;
    const replica = volume?.replicas.find((candidate) => candidate.nodeId === nodeId);
    if (volume === undefined || replica === undefined || replica.state === 'stale') {
      // Nobody reads there; a scrub finds what a rebuild leaves.
      known.clear();
      return;
    }
    const sources = inSyncReplicas(volume).filter((source) => source.nodeId !== nodeId);
    const source = sources.find((candidate) => nodeFleet.isOnline(candidate.nodeId));
    if (source === undefined) throw new Error('no other replica in sync is online');
    const regions = [...known].slice(0, BATCH_MAX);
    const order = await resyncOrder(this.#context, volume, source.nodeId);
    await nodeFleet.dispatch(nodeId, { kind: 'repair', ...order, regions }, { deadlineMs: timing.repairMs });
    for (const region of regions) known.delete(region);
    store.note({ type: 'replica.repaired', volume: volumeId, node: nodeId, regions: regions.length });
  }
}
