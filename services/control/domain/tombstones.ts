/**
 * Deletions that outlive the moment: replicas to be deleted and devices to be removed once their node or agent
 * is there. A tombstone goes only when its owner has confirmed; until then the space stays claimed.
 */
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Change } from '../store/store.ts';
import { commitRound } from './commit.ts';
import { type Context, timestamp } from './context.ts';
import { claims, deviceTombstones, nodes, replicaTombstones, type VolumeRecord } from './records.ts';

/** The changes that doom every replica of a volume that is being removed. */
export function doomReplicas(context: Context, volume: VolumeRecord): Change[] {
  return volume.replicas.map(({ nodeId }) => doomReplica(context, volume, nodeId));
}

/** The change that dooms one replica. */
export function doomReplica(context: Context, volume: VolumeRecord, nodeId: string): Change {
  return replicaTombstones.create([nodeId, volume.id], {
    nodeId,
    volumeId: volume.id,
    sizeBytes: volume.sizeBytes,
    createdAt: timestamp(context),
  });
}

/** The change that dooms the device of an attachment that is being removed without its agent's word. */
export function doomDevice(
  context: Context,
  device: { readonly agentId: string; readonly attachmentId: string; readonly volumeId: string },
): Change {
  return deviceTombstones.create([device.agentId, device.attachmentId], {
    ...device,
    createdAt: timestamp(context),
  });
}

export class TombstoneCollector {
  readonly #context: Context;
  /** One collection a member at a time; who comes meanwhile waits for a fresh one after it. */
  readonly #running = new Map<string, Promise<void>>();

  constructor(context: Context) {
    this.#context = context;
  }

  /** Deletes the doomed replicas of one node, as far as it is online and willing. Never rejects. */
  collectNode(nodeId: string): Promise<void> {
    return this.#serialised(`node/${nodeId}`, async () => {
      const { store, nodeFleet, timing } = this.#context;
      for (const { value: tombstone } of await replicaTombstones.list(store, nodeId)) {
        const { volumeId } = tombstone;
        if (!nodeFleet.isOnline(nodeId)) return;
        await this.#attempt(nodeId, volumeId, async () => {
          await nodeFleet.dispatch(
            nodeId,
            { kind: 'deleteReplica', volumeId },
            { deadlineMs: timing.deleteReplicaMs },
          );
          await this.#forgetReplica(nodeId, volumeId);
        });
      }
    });
  }

  /** Removes the doomed devices of one agent, as far as it is online and willing. Never rejects. */
  collectAgent(agentId: string): Promise<void> {
    return this.#serialised(`agent/${agentId}`, async () => {
      const { store, agentFleet, timing } = this.#context;
      for (const { value: tombstone, version } of await deviceTombstones.list(store, agentId)) {
        const { attachmentId, volumeId } = tombstone;
        if (!agentFleet.isOnline(agentId)) return;
        await this.#attempt(agentId, volumeId, async () => {
          await agentFleet.dispatch(
            agentId,
            { kind: 'detach', attachmentId, volumeId, force: true },
            { deadlineMs: timing.detachMs },
          );
          await store.commit([deviceTombstones.remove([agentId, attachmentId], version)]);
        });
      }
    });
  }

  /** Tries everything again for everybody who is online. Never rejects. */
  async sweep(): Promise<void> {
    const { nodeFleet, agentFleet } = this.#context;
    await Promise.all([
      ...nodeFleet.onlineIds().map((id) => this.collectNode(id)),
      ...agentFleet.onlineIds().map((id) => this.collectAgent(id)),
    ]);
  }

  /** Waits for the collections that run now; for a clean stop. */
  async settle(): Promise<void> {
    await Promise.all(this.#running.values());
  }

  async #forgetReplica(nodeId: string, volumeId: string): Promise<void> {
    const { store } = this.#context;
    await commitRound(store, async () => {
      const tombstone = await replicaTombstones.get(store, nodeId, volumeId);
      const claim = await claims.get(store, nodeId);
      const node = await nodes.get(store, nodeId);
      if (tombstone === null) return { changes: [], result: undefined };
      const { sizeBytes } = tombstone.value;
      const changes = [replicaTombstones.remove([nodeId, volumeId], tombstone.version)];
      if (claim !== null) {
        const claimedBytes = Math.max(0, claim.value.claimedBytes - sizeBytes);
        changes.push(claims.replace(nodeId, claim.version, { claimedBytes }));
      }
      if (node !== null) {
        // Until the next heartbeat says what it really is; else a volume of the same size would not fit.
        const freeBytes = Math.min(node.value.capacityBytes, node.value.freeBytes + sizeBytes);
        changes.push(nodes.replace(nodeId, node.version, { ...node.value, freeBytes }));
      }
      return {
        changes,
        result: undefined,
        events: [{ type: 'replica.deleted', volume: volumeId, node: nodeId }],
      };
    });
  }

  /** One refusal must not keep the other deletions waiting; the sweep tries it again. */
  async #attempt(memberId: string, volumeId: string, remove: () => Promise<void>): Promise<void> {
    try {
      await remove();
    } catch (thrown) {
      const { code, message } = toBlockwireError(thrown);
      this.#context.log.warn({ memberId, volumeId, code, reason: message }, 'a deletion is put off');
    }
  }

  #serialised(key: string, collect: () => Promise<void>): Promise<void> {
    const before = this.#running.get(key) ?? Promise.resolve();
    const run = before.then(collect).catch((error: unknown) => {
      this.#context.log.error({ member: key, err: error }, 'tombstones cannot be collected');
    });
    this.#running.set(key, run);
    void run.then(() => {
      if (this.#running.get(key) === run) this.#running.delete(key);
    });
    return run;
  }
}
