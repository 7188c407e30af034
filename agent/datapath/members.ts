/**
 * Which link serves which replica of a volume: a slot each, kept for as long as the replica is a member. Replicas may come
 * and go with every membership. Pure; the simulator runs it too.
 */
import { REPLICAS_COUNT_MAX } from './mirror.ts';

export const MEMBER_STATES = ['inSync', 'rebuilding', 'stale'] as const;
export type MemberState = (typeof MEMBER_STATES)[number];

export interface Member {
  readonly nodeId: string;
  readonly state: MemberState;
  /** The epoch at which it last became a member: another one than before means that it left meanwhile. */
  readonly joinedEpoch: number;
}

/** What a membership is to the mirror, a bit for each slot. */
export interface MemberMasks {
  readonly inSync: number;
  readonly rebuilding: number;
  /** Those that were not members all the time since the last membership: who had the slot leaves first. */
  readonly rejoined: number;
}

export class MemberSlots {
  readonly #nodeIds: string[] = [];
  /** By slot: the epoch at which its replica joined. */
  readonly #joinedEpochs: number[] = [];

  /** By slot: whose it is, also after that replica has left, until another one needs the slot. */
  get nodeIds(): readonly string[] {
    return this.#nodeIds;
  }

  /** The slot of a replica; null without one. A stale replica needs none. */
  slotOf(nodeId: string): number | null {
    const slot = this.#nodeIds.indexOf(nodeId);
    return slot === -1 ? null : slot;
  }

  /** Throws RangeError when more replicas get writes than there are slots; nothing has changed then. */
  apply(members: readonly Member[]): MemberMasks {
    const written = members.filter(({ state }) => state !== 'stale');
    if (written.length > REPLICAS_COUNT_MAX) {
      throw new RangeError(`${written.length} replicas get writes, more than ${REPLICAS_COUNT_MAX}`);
    }
    // Slots of replicas that are listed, stale or not, are taken last.
    const needed = new Set(written.map(({ nodeId }) => nodeId));
    const listed = new Set(members.map(({ nodeId }) => nodeId));
    let inSync = 0;
    let rebuilding = 0;
    let rejoined = 0;
    for (const { nodeId, state, joinedEpoch } of written) {
      const slot = this.slotOf(nodeId) ?? this.#freeSlot(needed, listed);
      const bit = 1 << slot;
      if (this.#nodeIds[slot] !== nodeId || this.#joinedEpochs[slot] !== joinedEpoch) rejoined |= bit;
      this.#nodeIds[slot] = nodeId;
      this.#joinedEpochs[slot] = joinedEpoch;
      if (state === 'inSync') inSync |= bit;
      else rebuilding |= bit;
    }
    return { inSync, rebuilding, rejoined };
  }

  #freeSlot(needed: ReadonlySet<string>, listed: ReadonlySet<string>): number {
    if (this.#nodeIds.length < REPLICAS_COUNT_MAX) return this.#nodeIds.length;
    const gone = this.#nodeIds.findIndex((nodeId) => !listed.has(nodeId));
    return gone !== -1 ? gone : this.#nodeIds.findIndex((nodeId) => !needed.has(nodeId));
  }
}
