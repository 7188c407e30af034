/** What a new process does before it serves: it ends what its predecessor left half done. */
import type { Attachments } from './attachments.ts';
import type { Snapshots } from './snapshots.ts';
import type { Volumes } from './volumes.ts';

/**
 * Volumes that were being created are rolled back (nobody got an answer for them), attaches are undone,
 * detaches are taken as not done, and snapshots are given up. Nothing here needs a node or an agent to be there.
 */
export async function recover(parts: {
  readonly volumes: Volumes;
  readonly attachments: Attachments;
  readonly snapshots: Snapshots;
}): Promise<void> {
  for (const { id, state } of await parts.volumes.list()) {
    if (state === 'creating') await parts.volumes.rollBack(id);
  }
  await parts.attachments.recover();
  await parts.snapshots.recover();
}
