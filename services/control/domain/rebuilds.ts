/**
 * Brings stale replicas back without hands. Works from what is recorded, so that it goes on after any crash:
 *
 *   stale ──▶ its node has a replica of the right size ──▶ rebuilding, installed at all members
 *         ──▶ the writer writes there too, its earlier writes are done (barrier)
 *         ──▶ the node copies what changed since, and reports: membership.ts, rebuildEnded
 *
 * Every step may be repeated: the same rebuild ordered twice goes on once.
 */
import { type BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import {
  installMembership,
  installOnce,
  membershipOf,
  type RebuildReport,
  rebuildEnded,
} from './membership.ts';
import { Pauses } from './pauses.ts';
import { prepareReplica } from './rebuild-preparation.ts';
import { RebuildProgress } from './rebuild-progress.ts';
import { attachments, type ReplicaRecord, type VolumeRecord, volumes } from './records.ts';
import { type NodeFacts, surplusOf } from './replacement-state.ts';
import { moveReplicas, nodeFacts } from './replacements.ts';
import { resyncOrder } from './resync-order.ts';
import { Slots } from './slots.ts';
import type { TombstoneCollector } from './tombstones.ts';
import { beginRebuild, inSyncReplicas, joinedEpochOf, writtenReplicas } from './volume-state.ts';

/** Volumes that one sweep works on at once: what all of them ask of one node must fit into its commands. */
const AT_ONCE_MAX = 32;

interface Writer {
  readonly id: string;
  readonly agentId: string;
  readonly state: string;
}

export class Rebuilder {
  readonly #context: Context;
  readonly #tombstones: TombstoneCollector;
  readonly #slots: Slots;
  /** By volume, and by volume and node. */
  readonly #pauses: Pauses;
  /** Volumes at work: one thing a volume at a time. */
  readonly #busy = new Set<string>();
  /** By attachment, or by volume where there is none: the membership that its agent, or its nodes, go by. */
  readonly #told = new Map<string, string>();
  /** Rebuilds that their node has taken on, by volume, node and epoch. */
  readonly #ordered = new Set<string>();
  /** By volume and node: a source from which it could not be rebuilt; another one is tried first. */
  readonly #badSources = new Map<string, string>();
  readonly progress = new RebuildProgress();

  constructor(context: Context, tombstones: TombstoneCollector) {
    const { policy, timing, now } = context;
    this.#context = context;
    this.#tombstones = tombstones;
    this.#slots = new Slots(policy.rebuildsPerNodeMax);
    this.#pauses = new Pauses({ minMs: timing.pauseMsMin, maxMs: timing.pauseMsMax, now });
  }

  /** Looks at every volume once. To be called every second or so, and when somebody comes online. Never rejects. */
  async sweep(): Promise<void> {
    const { store, log } = this.#context;
    try {
      const found = (await volumes.list(store)).map(({ value }) => value);
      this.#forgetEnded(found);
      const facts = await nodeFacts(this.#context);
      const queue = found.values();
      const work = async (): Promise<void> => {
        for (const volume of queue) await this.#tend(volume, facts);
      };
      await Promise.all(Array.from({ length: AT_ONCE_MAX }, work));
    } catch (error) {
      log.error({ err: error }, 'rebuilds cannot be looked at');
    }
  }

  /** A node has lost what it was doing: what was ordered there is ordered again. */
  nodeRestarted(nodeId: string): void {
    for (const key of this.#ordered) if (key.includes(`/${nodeId}/`)) this.#ordered.delete(key);
    this.progress.forget(nodeId);
  }

  /** Somebody is online: what failed without it may work now. */
  memberCame(): void {
    this.#pauses.forgetAll();
    void this.sweep();
  }

  /** A node ended a rebuild. Answered once the members know. */
  async ended(report: RebuildReport): Promise<void> {
    this.#note(report);
    await rebuildEnded(this.#context, report);
  }

  #note({ volumeId, nodeId, sourceNodeId, error }: RebuildReport): void {
    const name = `${volumeId}/${nodeId}`;
    if (error === null) {
      this.#pauses.forget(name);
      this.#badSources.delete(name);
    } else {
      this.#pauses.begin(name);
      this.#badSources.set(name, sourceNodeId);
      this.#context.log.warn({ volumeId, nodeId, sourceNodeId, reason: error }, 'a rebuild failed');
    }
  }

  /** Slots and orders of rebuilds that run no more, and what is known of volumes and attachments that are gone. */
  #forgetEnded(found: readonly VolumeRecord[]): void {
    const live = new Set<string>();
    for (const volume of found) {
      for (const replica of rebuildingReplicas(volume)) {
        live.add(`${volume.id}/${replica.nodeId}`).add(keyOf(volume, replica));
      }
    }
    const isOver = (name: string): boolean => !live.has(name) && !this.#busy.has(name.split('/')[0]!);
    this.#slots.release(isOver);
    for (const key of this.#ordered) if (isOver(key)) this.#ordered.delete(key);
    const ids = new Set(found.flatMap(({ id, attachmentId }) => [id, attachmentId]));
    for (const id of this.#told.keys()) if (!ids.has(id)) this.#told.delete(id);
  }

  async #tend({ id, state }: VolumeRecord, facts: NodeFacts): Promise<void> {
    if (state === 'creating' || this.#busy.has(id) || !this.#pauses.isOver(id)) return;
    this.#busy.add(id);
    try {
      await this.#advance(id, facts);
      this.#pauses.forget(id);
    } catch (thrown) {
      const { code, message }: BlockwireError = toBlockwireError(thrown);
      this.#pauses.begin(id);
      this.#context.log.debug({ volumeId: id, code, reason: message }, 'a rebuild is put off');
    } finally {
      this.#busy.delete(id);
    }
  }

  async #advance(volumeId: string, facts: NodeFacts): Promise<void> {
    const { store, nodeFleet } = this.#context;
    const found = (await volumes.get(store, volumeId))?.value;
    if (found === undefined) return;
    const attachment = await this.#attachmentOf(found);
    // An attach or a detach under way decides the membership itself.
    if (attachment !== null && attachment.state !== 'attached') return;
    await this.#move({ volumeId, facts, isSettled: this.#isTold(attachment, found) });
    const begun = await this.#begin(volumeId, found.generation, facts);
    if (begun === null) return;
    const waiting = rebuildingReplicas(begun).filter((replica) => !this.#ordered.has(keyOf(begun, replica)));
    if (this.#isTold(attachment, begun) && waiting.length === 0) return;
    // A writer reports what it loses. Here a member that is only late to come back would be taken for lost.
    const isLate = writtenReplicas(begun).some(({ nodeId }) => !nodeFleet.isOnline(nodeId));
    if (isLate && (attachment !== null || waiting.length === 0)) return;
    if (attachment === null && waiting.length === 0) {
      await this.#remind(begun);
      return;
    }
    const { generation } = begun;
    const volume = await installMembership(this.#context, { volumeId, generation });
    if (attachment === null) this.#told.set(volumeId, numbersOf(volume));
    else await this.#tell(attachment, volume);
    await Promise.all(rebuildingReplicas(volume).map((replica) => this.#order(volume, replica)));
  }

  /** A replica for which there is no place stays where it is, and the others are rebuilt. */
  async #move(target: Parameters<typeof moveReplicas>[2]): Promise<void> {
    try {
      await moveReplicas(this.#context, this.#tombstones, target);
    } catch (thrown) {
      const { code, message } = toBlockwireError(thrown);
      if (code !== 'BW_NOT_ENOUGH_NODES' && code !== 'BW_NOT_ENOUGH_SPACE') throw thrown;
      this.#context.log.debug({ volumeId: target.volumeId, code, reason: message }, 'no place for a replica');
    }
  }

  /** One commit begins every rebuild that can begin; null when another writer was let in meanwhile. */
  async #begin(volumeId: string, generation: number, facts: NodeFacts): Promise<VolumeRecord | null> {
    const { store } = this.#context;
    const found = (await volumes.get(store, volumeId))?.value;
    if (found === undefined) return null;
    const leaving = surplusOf(found, facts).map(({ nodeId }) => nodeId);
    const staying = found.replicas.filter(({ nodeId }) => !leaving.includes(nodeId));
    const prepared = await Promise.all(staying.map((replica) => this.#prepare(found, replica)));
    const ready = staying.filter((_, index) => prepared[index]).map(({ nodeId }) => nodeId);
    const volume = await commitRound<VolumeRecord | null>(store, async () => {
      const latest = await volumes.get(store, volumeId);
      const nothing = { changes: [], result: latest?.value ?? null };
      if (latest === null || latest.value.generation !== generation) return nothing;
      // What was prepared may be too small by now: the next sweep sees to it.
      if (ready.length === 0 || latest.value.sizeBytes !== found.sizeBytes) return nothing;
      let next = latest.value;
      const begun: string[] = [];
      for (const nodeId of ready) {
        const rebuilding = beginRebuild(next, nodeId);
        if (rebuilding !== null) begun.push(nodeId);
        next = rebuilding ?? next;
      }
      if (begun.length === 0) return nothing;
      const { epoch } = next;
      return {
        changes: [volumes.replace(volumeId, latest.version, next)],
        result: next,
        events: begun.map((node) => ({ type: 'replica.rebuilding', volume: volumeId, node, epoch })),
      };
    });
    return volume?.generation === generation ? volume : null;
  }

  /**
   * Whether the rebuild of this replica can begin: it is stale, its node and a source are there and have room for one more,
   * and the node has a replica of the volume's size.
   */
  async #prepare(volume: VolumeRecord, replica: ReplicaRecord): Promise<boolean> {
    const { nodeFleet, log } = this.#context;
    const { id: volumeId } = volume;
    const { nodeId, state } = replica;
    const name = `${volumeId}/${nodeId}`;
    if (state !== 'stale' || !nodeFleet.isOnline(nodeId) || !this.#pauses.isOver(name)) return false;
    const source = this.#sourceOf(volume, nodeId);
    if (source === null || !this.#slots.take(name, [nodeId, source])) return false;
    try {
      await prepareReplica(this.#context, volume, replica);
      return true;
    } catch (thrown) {
      const { code, message } = toBlockwireError(thrown);
      if (code === 'BW_SHUTTING_DOWN') throw thrown;
      this.#pauses.begin(name);
      log.warn({ volumeId, nodeId, code, reason: message }, 'a rebuild cannot begin');
      return false;
    }
  }

  /** The in-sync replica from which to copy: the one whose node has least to do. */
  #sourceOf(volume: VolumeRecord, nodeId: string): string | null {
    const { nodeFleet } = this.#context;
    const name = `${volume.id}/${nodeId}`;
    const bad = this.#badSources.get(name);
    const weight = (id: string): number => this.#slots.countOf(id) + (id === bad ? 1000 : 0);
    const sources = inSyncReplicas(volume)
      .map((replica) => replica.nodeId)
      .filter((id) => nodeFleet.isOnline(id))
      .sort((a, b) => weight(a) - weight(b));
    return sources[0] ?? null;
  }

  /**
   * Nodes of a volume without a writer learn its membership, also the generation of an attach that came to nothing: or they would
   * refuse what users are given. Nobody waits for it, so one that cannot take it now is asked again.
   */
  async #remind(volume: VolumeRecord): Promise<void> {
    const [failure] = (await installOnce(this.#context, volume)).values();
    if (failure !== undefined) throw failure;
    this.#told.set(volume.id, numbersOf(volume));
  }

  /** Resolves when the writer goes by the volume's membership, and its earlier writes are done. */
  async #tell(attachment: Writer, volume: VolumeRecord): Promise<void> {
    const { agentFleet, timing } = this.#context;
    if (this.#isTold(attachment, volume)) return;
    const membership = await membershipOf(this.#context, volume);
    const action = { kind: 'membership', attachmentId: attachment.id, membership } as const;
    await agentFleet.dispatch(attachment.agentId, action, { deadlineMs: timing.membershipMs });
    this.#told.set(attachment.id, numbersOf(volume));
  }

  #isTold(attachment: Writer | null, volume: VolumeRecord): boolean {
    return this.#told.get(attachment?.id ?? volume.id) === numbersOf(volume);
  }

  async #order(volume: VolumeRecord, replica: ReplicaRecord): Promise<void> {
    const { nodeFleet, timing, policy } = this.#context;
    const { id: volumeId } = volume;
    const { nodeId, staleSinceEpoch } = replica;
    const joinedEpoch = joinedEpochOf(replica);
    const key = keyOf(volume, replica);
    if (this.#ordered.has(key)) return;
    const sourceNodeId = this.#sourceOf(volume, nodeId);
    if (sourceNodeId === null) return;
    this.#slots.occupy(`${volumeId}/${nodeId}`, [nodeId, sourceNodeId]);
    try {
      const order = await resyncOrder(this.#context, volume, sourceNodeId);
      const sinceEpoch = staleSinceEpoch ?? 1;
      const { rebuildBytesPerSecond: bytesPerSecond } = policy;
      const action = { kind: 'rebuild', ...order, joinedEpoch, sinceEpoch, bytesPerSecond } as const;
      await nodeFleet.dispatch(nodeId, action, { deadlineMs: timing.installEpochMs });
      this.#ordered.add(key);
    } catch (thrown) {
      const { code, message } = toBlockwireError(thrown);
      if (code === 'BW_SHUTTING_DOWN') throw thrown;
      await this.ended({ nodeId, volumeId, joinedEpoch, sourceNodeId, error: message });
    }
  }

  async #attachmentOf(volume: VolumeRecord): Promise<Writer | null> {
    if (volume.attachmentId === null) return null;
    return (await attachments.get(this.#context.store, volume.attachmentId))?.value ?? null;
  }
}

function numbersOf({ generation, epoch }: VolumeRecord): string {
  return `${generation}/${epoch}`;
}

function rebuildingReplicas(volume: VolumeRecord): ReplicaRecord[] {
  return volume.replicas.filter(({ state }) => state === 'rebuilding');
}

function keyOf(volume: VolumeRecord, replica: ReplicaRecord): string {
  return `${volume.id}/${replica.nodeId}/${joinedEpochOf(replica)}`;
}
