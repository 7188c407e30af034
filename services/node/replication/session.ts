/**
 * From the name that a client asked for to what it may do: its capability verified, its claim compared with what is
 * installed. A node that belongs to no cluster has no key to verify with, and lets everybody in by the bare name.
 */
import type { CapabilityVerifier } from '@blockwire/shared/capability.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { ExportName } from '@blockwire/shared/export-name.ts';
import { admitSession, type Installed, type SessionClaim } from './admission.ts';

/** What a connection carries through its life. Plain data: it is handed from worker to worker. */
export interface Session {
  /** What it says it goes by; null: a bare name, nothing to be compared. */
  readonly claim: SessionClaim | null;
  /** It is cut when a higher one is installed. */
  readonly generation: number;
  readonly mayWrite: boolean;
  /** All connections of a link end when one with a higher attempt comes. */
  readonly link: string | null;
  readonly attempt: number;
}

/**
 * What a name allows. Throws BW_CAPABILITY_INVALID, and BW_INVALID_ARGUMENT when writer or peer do not name an epoch.
 * @param key null: the node belongs to no cluster
 * @param installedGeneration what a bare name is taken to mean
 */
export function readSession(
  name: ExportName,
  key: CapabilityVerifier | null,
  context: { readonly nowSeconds: number; readonly installedGeneration: number },
): Session {
  const { capability, epoch, link, attempt, snapshot } = name;
  const way = { link, attempt: attempt ?? 0 };
  if (key === null) {
    if (capability !== null) throw invalid('this node belongs to no cluster and cannot verify a capability');
    return { claim: null, generation: context.installedGeneration, mayWrite: snapshot === null, ...way };
  }
  if (capability === null) {
    throw invalid('the export is opened with a capability; ask the control plane for its address');
  }
  const { volumeId, generation, mode } = key.verify(capability, context.nowSeconds);
  if (volumeId !== name.volumeId) throw invalid(`the capability is for ${volumeId}`);
  const mayWrite = snapshot === null && (mode === 'writer' || mode === 'client');
  if (mode === 'client' || mode === 'reader') {
    return { claim: { kind: mode, generation }, generation, mayWrite, ...way };
  }
  if (epoch === null) throw new BlockwireError('BW_INVALID_ARGUMENT', `a ${mode} has to name its epoch`);
  return { claim: { kind: mode, generation, epoch }, generation, mayWrite, ...way };
}

/** Throws BW_GENERATION_OLD, BW_EPOCH_OLD, BW_CONFLICT or BW_REPLICA_DAMAGED for a session that is not let in. */
export function admit(installed: Installed, session: Session): void {
  if (session.claim !== null) {
    admitSession(installed, session.claim);
  } else if (session.generation < installed.generation) {
    throw new BlockwireError('BW_GENERATION_OLD', 'another writer has the volume now');
  }
}

function invalid(message: string): BlockwireError {
  return new BlockwireError('BW_CAPABILITY_INVALID', message);
}
