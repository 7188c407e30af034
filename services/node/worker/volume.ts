/** A volume as its worker sees it: the open files, what the file system can do, and who writes where. */
import type { Installed } from '../replication/admission.ts';
import type { FreshMap } from '../replication/fresh.ts';
import type { Mark } from '../replication/marks.ts';
import { type Installation, ReplicaMembership } from '../replication/membership.ts';
import { blockFrom } from './block-math.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import { Integrity, type IntegrityFiles } from './integrity.ts';
import type { NodeIo } from './node-io.ts';
import type { Slots } from './slots.ts';
import { WriteOrder } from './write-order.ts';

export interface VolumeOptions extends IntegrityFiles {
  readonly id: string;
  readonly fd: number;
  readonly sizeBytes: number;
  /** What is installed of the volume's membership; null: a snapshot, in which nothing is ever written. */
  readonly installed: Installed | null;
}

export class Volume {
  readonly id: string;
  /** Opened by the main thread, which also closes it. */
  readonly fd: number;
  readonly readOnly: boolean;
  /** What clients see; the file itself is rounded up to whole blocks. */
  sizeBytes: number;
  /** Null: a snapshot. */
  readonly membership: ReplicaMembership | null;
  /** What was written since the replica joined: for the hot path, beside the membership. */
  fresh: FreshMap | null;
  /** By link: its latest attempt. */
  readonly attempts = new Map<string, number>();
  /** Whether the file system can punch holes, and zero ranges without making holes. Probed at opening. */
  canPunchHole = false;
  canZeroRange = false;
  /** Errno of the last failed operation on the file; 0 while it is well. */
  failure = 0;
  readonly order: WriteOrder;
  readonly integrity: Integrity;
  // Of the cleaner: cycles under way, whether one of them is of a CHECKPOINT.
  cleanings = 0;
  checkpointing = false;
  cleanCursor = 0;
  /** Copies from other replicas under way. */
  copies = 0;
  cleanedStamp = 0;

  constructor(options: VolumeOptions, io: NodeIo, slots: Slots) {
    const { sizeBytes, installed } = options;
    this.id = options.id;
    this.fd = options.fd;
    this.readOnly = installed === null;
    this.sizeBytes = sizeBytes;
    this.membership = installed === null ? null : new ReplicaMembership(installed);
    this.order = new WriteOrder(slots);
    this.fresh = this.membership?.fresh ?? null;
    const epoch = installed?.epoch ?? 0;
    this.integrity = new Integrity(io, options, sizeBytes, epoch, this.readOnly);
  }

  /** What has been persisted of its membership. Not for a snapshot. */
  install(installation: Installation): void {
    const { membership } = this;
    if (membership === null) return;
    // Links of earlier generations never come back.
    if (installation.installed.generation > membership.installed.generation) this.attempts.clear();
    membership.commit(installation);
    this.fresh = membership.fresh;
  }

  /** MARK has arrived: writes that begin from now on are told from those before. Not for a snapshot. */
  mark(mark: Mark): void {
    this.membership?.mark(mark, () => ++this.integrity.stamp);
  }

  /** A write of the writer begins, while the replica is being rebuilt. Bytes. */
  noteFresh(offset: number, length: number): void {
    // The last block is written as a whole, its last sector too.
    const isLast = offset + length === this.sizeBytes;
    this.fresh?.add(offset, isLast ? blockFrom(this.sizeBytes) * UNIT_BYTES - offset : length);
  }

  /** Whether an operation of its own, not of a request, is under way. */
  get busy(): boolean {
    return this.cleanings > 0 || this.copies > 0 || this.integrity.busyPages > 0;
  }
}
