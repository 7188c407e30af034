/**
 * Brings stale replicas back without hands. Works from what is recorded, so that it goes on after any crash:
 *
 *   stale ──▶ rebuilding, installed at all members ──▶ the writer writes there too, its earlier writes are done (barrier)
 *         ──▶ the node copies what changed since, and reports: membership.ts, rebuildEnded
 *
 * Every step may be repeated: the same rebuild ordered twice goes on once.
 */
import { type BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import { installMembership, membershipOf, rebuildEnded } from './membership.ts';
import { attachments, nodes, type ReplicaRecord, type VolumeRecord, volumes } from './records.ts';
import { beginRebuild, inSyncReplicas, joinedEpochOf, writtenReplicas } from './volume-state.ts';

export class Rebuilder {
  readonly #context: Context;
  /** Volumes at work: one thing a volume at a time. */
  readonly #busy = new Set<string>();
  /** By attachment: the epoch its agent goes by. */
  readonly #told = new Map<string, number>();
  /** Rebuilds that their node has taken on, by volume, node and epoch. */
  readonly #ordered = new Set<string>();

  constructor(context: Context) {
    this.#context = context;
  }

  /** Looks at every volume once. To be called every second or so, and when a node comes online. Never rejects. */
  async sweep(): Promise<void> {
    const { store, log } = this.#context;
    try {
      await Promise.all((await volumes.list(store)).map(({ value }) => this.#tend(value)));
    } catch (error) {
      log.error({ err: error }, 'rebuilds cannot be looked at');
    }
  }

  /** A node has lost what it was doing: what was ordered there is ordered again. */
  nodeRestarted(nodeId: string): void {
    for (const key of this.#ordered) if (key.includes(`/${nodeId}/`)) this.#ordered.delete(key);
  }

  async #tend(volume: VolumeRecord): Promise<void> {
    if (volume.state === 'creating' || this.#busy.has(volume.id)) return;
    this.#busy.add(volume.id);
    try {
      await this.#advance(volume);
    } catch (thrown) {
      const { code, message }: BlockwireError = toBlockwireError(thrown);
      this.#context.log.debug({ volumeId: volume.id, code, reason: message }, 'a rebuild is put off');
    } finally {
      this.#busy.delete(volume.id);
    }
  }

  async #advance(found: VolumeRecord): Promise<void> {
    const { store, nodeFleet } = this.#context;
    const { id: volumeId } = found;
    const attachment = await this.#attachmentOf(found);
    // An attach or a detach under way decides the membership itself.
    if (attachment !== null && attachment.state !== 'attached') return;
    const begun = await commitRound<VolumeRecord>(store, async () => {
      const latest = await volumes.get(store, volumeId);
      if (latest === null) return { changes: [], result: found };
      const startable = latest.value.replicas.filter(
        ({ state, nodeId }) => state === 'stale' && nodeFleet.isOnline(nodeId),
      );
      if (latest.value.generation !== found.generation || startable.length === 0) {
        return { changes: [], result: latest.value };
      }
      const next = startable.reduce(
        (record, { nodeId }) => beginRebuild(record, nodeId) ?? record,
        latest.value,
      );
      if (next === latest.value) return { changes: [], result: latest.value };
      return { changes: [volumes.replace(volumeId, latest.version, next)], result: next };
    });
    const isTold = attachment === null || this.#told.get(attachment.id) === begun.epoch;
    const waiting = rebuildingReplicas(begun).filter((replica) => !this.#ordered.has(keyOf(begun, replica)));
    if (isTold && waiting.length === 0) return;
    // A writer reports what it loses. Here a member that is only late to come back would be taken for lost.
    const isLate = writtenReplicas(begun).some(({ nodeId }) => !nodeFleet.isOnline(nodeId));
    if (attachment !== null && isLate) return;
    const { generation } = begun;
    const volume = await installMembership(this.#context, { volumeId, generation });
    if (attachment !== null) await this.#tell(attachment, volume);
    await Promise.all(rebuildingReplicas(volume).map((replica) => this.#order(volume, replica)));
  }

  /** Resolves when the writer goes by the volume's membership, and its earlier writes are done. */
  async #tell(
    attachment: { readonly id: string; readonly agentId: string },
    volume: VolumeRecord,
  ): Promise<void> {
    const { agentFleet, timing } = this.#context;
    if (this.#told.get(attachment.id) === volume.epoch) return;
    const membership = await membershipOf(this.#context, volume);
    const action = { kind: 'membership', attachmentId: attachment.id, membership } as const;
    await agentFleet.dispatch(attachment.agentId, action, { deadlineMs: timing.membershipMs });
    this.#told.set(attachment.id, volume.epoch);
  }

  async #order(volume: VolumeRecord, replica: ReplicaRecord): Promise<void> {
    const { store, nodeFleet, timing, exportNames } = this.#context;
    const { id: volumeId, generation, epoch } = volume;
    const { nodeId, staleSinceEpoch } = replica;
    const joinedEpoch = joinedEpochOf(replica);
    const key = keyOf(volume, replica);
    if (this.#ordered.has(key)) return;
    const source = inSyncReplicas(volume).find((candidate) => nodeFleet.isOnline(candidate.nodeId));
    if (source === undefined) return;
    const sourceNodeId = source.nodeId;
    const address = (await nodes.get(store, sourceNodeId))?.value.nbdAddress ?? '';
    try {
      await nodeFleet.dispatch(
        nodeId,
        {
          ...{ kind: 'rebuild', volumeId, generation, epoch, joinedEpoch, sinceEpoch: staleSinceEpoch ?? 1 },
          ...{ sourceNodeId, sourceAddress: address, exportName: exportNames.nameOf(volume, 'peer') },
        },
        { deadlineMs: timing.installEpochMs },
      );
      this.#ordered.add(key);
    } catch (thrown) {
      const { code, message } = toBlockwireError(thrown);
      if (code === 'BW_SHUTTING_DOWN') throw thrown;
      await rebuildEnded(this.#context, { nodeId, volumeId, joinedEpoch, sourceNodeId, error: message });
    }
  }

  async #attachmentOf(volume: VolumeRecord): Promise<{ id: string; agentId: string; state: string } | null> {
    if (volume.attachmentId === null) return null;
    return (await attachments.get(this.#context.store, volume.attachmentId))?.value ?? null;
  }
}

function rebuildingReplicas(volume: VolumeRecord): ReplicaRecord[] {
  return volume.replicas.filter(({ state }) => state === 'rebuilding');
}

function keyOf(volume: VolumeRecord, replica: ReplicaRecord): string {
  return `${volume.id}/${replica.nodeId}/${joinedEpochOf(replica)}`;
}
