/**
 * Scrubs of all volumes, one after the other at each node: begun when they are due or asked for, ordered at every replica, their
 * results recorded. Works from what is recorded, so that it goes on after any crash.
 */
import { type BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { commitRound } from './commit.ts';
import { type Context, timestamp } from './context.ts';
import type { ControlEvent } from './events.ts';
import { type ScrubbedReplica, type VolumeRecord, volumes } from './records.ts';
import { resyncOrder } from './resync-order.ts';
import {
  beginScrub,
  isScrubDue,
  recordScrub,
  runningScrub,
  type ScrubReport,
  scrubbedAtMs,
} from './scrub-state.ts';
import { Slots } from './slots.ts';
import { inSyncReplicas } from './volume-state.ts';
import { volumeNotFound } from './volumes.ts';

/** A node works for one scrub at a time, as the one that compares or the one that is read. */
const PER_NODE_MAX = 1;

export class Scrubber {
  readonly #context: Context;
  readonly #slots = new Slots(PER_NODE_MAX);
  readonly #busy = new Set<string>();
  /** Orders that their node has taken, by volume, node and start. */
  readonly #ordered = new Set<string>();

  constructor(context: Context) {
    this.#context = context;
  }

  /** Begins one now. Throws BW_VOLUME_NOT_FOUND and what `beginScrub` throws. */
  async start(volumeId: string): Promise<VolumeRecord> {
    const { nodeFleet } = this.#context;
    const startedAt = timestamp(this.#context);
    const volume = await this.#change(volumeId, (found) =>
      beginScrub(found, { startedAt, isOnline: (nodeId) => nodeFleet.isOnline(nodeId) }),
    );
    void this.#tend(volume);
    return volume;
  }

  /** A node ended its part. */
  async ended(report: ScrubReport): Promise<void> {
    const { volumeId, nodeId, error } = report;
    const finishedAt = timestamp(this.#context);
    await this.#change(volumeId, (found) => recordScrub(found, report, finishedAt)).catch(orGone);
    if (error !== null) this.#context.log.warn({ volumeId, nodeId, reason: error }, 'a scrub failed');
  }

  /** A node has lost what it was doing: what was ordered there is ordered again. */
  nodeRestarted(nodeId: string): void {
    for (const key of this.#ordered) if (key.includes(`/${nodeId}/`)) this.#ordered.delete(key);
  }

  /** Looks at every volume once. Never rejects. */
  async sweep(): Promise<void> {
    const { store, now, policy, log } = this.#context;
    try {
      const found = (await volumes.list(store)).map(({ value }) => value);
      const running = found.filter((volume) => runningScrub(volume) !== null);
      this.#slots.release((id) => !running.some((volume) => volume.id === id));
      for (const volume of running) this.#slots.occupy(volume.id, nodesOf(volume));
      await Promise.all(running.map((volume) => this.#tend(volume)));
      const time = { nowMs: now(), intervalMs: policy.scrubIntervalMs };
      const due = found.filter((volume) => isScrubDue(volume, time));
      // Who waits longest comes first, so that all have their turn when there is more to do than time.
      for (const volume of due.sort((a, b) => scrubbedAtMs(a) - scrubbedAtMs(b))) {
        if (this.#isPossible(volume)) await this.start(volume.id);
      }
    } catch (error) {
      log.error({ err: error }, 'scrubs cannot be looked at');
    }
  }

  #isPossible(volume: VolumeRecord): boolean {
    const { nodeFleet } = this.#context;
    const nodeIds = inSyncReplicas(volume)
      .map(({ nodeId }) => nodeId)
      .filter((nodeId) => nodeFleet.isOnline(nodeId));
    return nodeIds.length >= 2 && this.#slots.take(volume.id, nodeIds);
  }

  async #tend(volume: VolumeRecord): Promise<void> {
    const scrub = runningScrub(volume);
    if (scrub === null || this.#busy.has(volume.id)) return;
    this.#busy.add(volume.id);
    try {
      const open = scrub.replicas.filter(({ isDone }) => !isDone);
      await Promise.all(open.map((replica) => this.#order(volume, scrub.startedAt, replica)));
    } catch (thrown) {
      const { code, message }: BlockwireError = toBlockwireError(thrown);
      this.#context.log.debug({ volumeId: volume.id, code, reason: message }, 'a scrub is put off');
    } finally {
      this.#busy.delete(volume.id);
    }
  }

  async #order(volume: VolumeRecord, startedAt: string, replica: ScrubbedReplica): Promise<void> {
    const { nodeFleet, timing, policy } = this.#context;
    const { nodeId, sourceNodeId } = replica;
    const key = `${volume.id}/${nodeId}/${startedAt}`;
    const members = inSyncReplicas(volume).map((member) => member.nodeId);
    const fail = (error: string): Promise<void> =>
      this.ended({
        ...{ volumeId: volume.id, nodeId, error },
        ...{ scannedBytes: 0, mismatchedRegions: 0, repairedRegions: 0 },
      });
    if (!members.includes(nodeId)) return fail('the replica is not in sync any more');
    if (!members.includes(sourceNodeId)) return fail('the replica to compare with is not in sync any more');
    if (this.#ordered.has(key) || !nodeFleet.isOnline(nodeId)) return;
    this.#ordered.add(key);
    try {
      const order = await resyncOrder(this.#context, volume, sourceNodeId);
      const { scrubBytesPerSecond: bytesPerSecond } = policy;
      const action = { kind: 'scrub', ...order, bytesPerSecond } as const;
      await nodeFleet.dispatch(nodeId, action, { deadlineMs: timing.installEpochMs });
    } catch (thrown) {
      this.#ordered.delete(key);
      const { code, message } = toBlockwireError(thrown);
      // It may be back soon.
      if (code === 'BW_SHUTTING_DOWN' || code === 'BW_NODE_OFFLINE') throw thrown;
      await fail(message);
    }
  }

  #change(volumeId: string, change: (volume: VolumeRecord) => VolumeRecord): Promise<VolumeRecord> {
    const { store } = this.#context;
    return commitRound(store, async () => {
      const found = await volumes.get(store, volumeId);
      if (found === null) throw volumeNotFound(volumeId);
      const next = change(found.value);
      const changes = next === found.value ? [] : [volumes.replace(volumeId, found.version, next)];
      return { changes, result: next, events: scrubEvents(found.value, next) };
    });
  }
}

function scrubEvents(before: VolumeRecord, after: VolumeRecord): ControlEvent[] {
  const [was, is] = [runningScrub(before), runningScrub(after)];
  if (was === null && is !== null) return [{ type: 'volume.scrubbing', volume: after.id }];
  if (was === null || is !== null) return [];
  const replicas = after.scrub?.replicas ?? [];
  const sum = (of: (replica: ScrubbedReplica) => number): number =>
    replicas.reduce((total, replica) => total + of(replica), 0);
  const mismatchedRegions = sum((replica) => replica.mismatchedRegions);
  const repairedRegions = sum((replica) => replica.repairedRegions);
  return [{ type: 'volume.scrubbed', volume: after.id, mismatchedRegions, repairedRegions }];
}

function nodesOf(volume: VolumeRecord): string[] {
  return volume.scrub?.replicas.map(({ nodeId }) => nodeId) ?? [];
}

function orGone(thrown: unknown): null {
  if (toBlockwireError(thrown).code !== 'BW_VOLUME_NOT_FOUND') throw thrown;
  return null;
}
