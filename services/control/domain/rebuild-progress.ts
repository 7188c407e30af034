/** How far rebuilds are, as their nodes say. Not stored: it is true only now. */
import type { ReplicaRecord, VolumeRecord } from './records.ts';
import { joinedEpochOf } from './volume-state.ts';

export interface Progress {
  readonly copiedBytes: number;
  /** As far as it is known. */
  readonly totalBytes: number;
}

export interface RebuildNote extends Progress {
  readonly volumeId: string;
  /** Names the rebuild. */
  readonly joinedEpoch: number;
}

export class RebuildProgress {
  /** By node: what its last heartbeat said of each rebuild there. */
  readonly #notes = new Map<string, readonly RebuildNote[]>();

  note(nodeId: string, rebuilds: readonly RebuildNote[]): void {
    this.#notes.set(nodeId, rebuilds);
  }

  forget(nodeId: string): void {
    this.#notes.delete(nodeId);
  }

  /** Null when the replica is not being rebuilt. */
  of(volume: VolumeRecord, replica: ReplicaRecord): Progress | null {
    if (replica.state !== 'rebuilding') return null;
    const joinedEpoch = joinedEpochOf(replica);
    const found = this.#notes
      .get(replica.nodeId)
      ?.find((note) => note.volumeId === volume.id && note.joinedEpoch === joinedEpoch);
    return { copiedBytes: found?.copiedBytes ?? 0, totalBytes: found?.totalBytes ?? 0 };
  }
}
