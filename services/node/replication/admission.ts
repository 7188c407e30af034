/**
 * What a replica lets in: memberships from the control plane, writers, and peers that copy from it. Pure; who persists
 * what is installed, before anything is answered: store/descriptor.ts.
 *
 * Invariants:
 * - Generation and epoch never go back.
 * - A session names the generation and the epoch that its client goes by, and both must be the installed ones: a client
 *   that missed a membership learns of it before it writes or reads again. Who was only given an address knows no epoch.
 * - After a power failure nobody gets in until the control plane has decided what the replica still counts for.
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';

export type Role = 'inSync' | 'rebuilding';

/** What a replica persists of its membership. */
export interface Installed {
  readonly generation: number;
  readonly epoch: number;
  readonly role: Role;
  /** The epoch at which it last became a member. */
  readonly joinedEpoch: number;
  /** The installed epoch when power failed with intents; null while nothing of that kind is open. */
  readonly uncleanEpoch: number | null;
}

export interface InstallOrder {
  readonly generation: number;
  readonly epoch: number;
  readonly role: Role;
  readonly joinedEpoch: number;
  /** Losses up to this epoch are accepted. */
  readonly lossEpoch: number;
}

/** What one who knows the membership says of itself. */
export interface MemberClaim {
  /** `writer`: the volume's agent. `peer`: another node, which only reads. */
  readonly kind: 'writer' | 'peer';
  readonly generation: number;
  readonly epoch: number;
}

/** What one who was only given an address says: `client` also writes. */
export interface AddressClaim {
  readonly kind: 'client' | 'reader';
  readonly generation: number;
}

export type SessionClaim = MemberClaim | AddressClaim;

/** Throws BW_GENERATION_OLD, BW_EPOCH_OLD, or BW_REPLICA_DAMAGED after a power failure that nobody has accepted. */
export function afterInstall(installed: Installed, order: InstallOrder): Installed {
  const { generation, epoch, role, joinedEpoch, lossEpoch } = order;
  if (generation < installed.generation) {
    throw new BlockwireError(
      'BW_GENERATION_OLD',
      `generation ${generation} is older than ${installed.generation}, which is installed here`,
    );
  }
  if (epoch < installed.epoch) {
    throw new BlockwireError(
      'BW_EPOCH_OLD',
      `epoch ${epoch} is older than ${installed.epoch}, which is installed here`,
    );
  }
  const { uncleanEpoch } = installed;
  // A rebuild repairs what was lost; otherwise somebody has to have said that the loss is known.
  const isSettled = uncleanEpoch === null || role === 'rebuilding' || lossEpoch > uncleanEpoch;
  if (!isSettled) {
    throw new BlockwireError(
      'BW_REPLICA_DAMAGED',
      'power failed here before everything acknowledged was flushed; the replica waits to be rebuilt',
    );
  }
  return { generation, epoch, role, joinedEpoch, uncleanEpoch: null };
}

/** Throws BW_GENERATION_OLD, BW_EPOCH_OLD, BW_REPLICA_DAMAGED, or BW_CONFLICT for what is not installed here yet. */
export function admitSession(installed: Installed, claim: SessionClaim): void {
  const { generation, kind } = claim;
  const epoch = 'epoch' in claim ? claim.epoch : installed.epoch;
  if (installed.uncleanEpoch !== null) {
    throw new BlockwireError('BW_REPLICA_DAMAGED', 'power failed here; the replica waits to be rebuilt');
  }
  if (generation < installed.generation) {
    throw new BlockwireError('BW_GENERATION_OLD', 'another writer has the volume now');
  }
  if (epoch < installed.epoch) {
    throw new BlockwireError('BW_EPOCH_OLD', 'the membership has changed; ask the control plane for it');
  }
  if (generation > installed.generation || epoch > installed.epoch) {
    throw new BlockwireError('BW_CONFLICT', 'this membership is not installed here; try again');
  }
  if (kind !== 'writer' && installed.role !== 'inSync') {
    throw new BlockwireError('BW_CONFLICT', 'the replica is not in sync');
  }
}
