/** A volume as its worker sees it: the open files, what the file system can do, and who writes where. */
import { Integrity, type IntegrityFiles } from './integrity.ts';
import type { NodeIo } from './node-io.ts';
import type { Slots } from './slots.ts';
import { WriteOrder } from './write-order.ts';

export interface VolumeOptions extends IntegrityFiles {
  readonly id: string;
  readonly fd: number;
  readonly sizeBytes: number;
  readonly generation: number;
  readonly epoch: number;
  /** A snapshot: nothing is ever written. */
  readonly readOnly: boolean;
}

export class Volume {
  readonly id: string;
  /** Opened by the main thread, which also closes it. */
  readonly fd: number;
  readonly readOnly: boolean;
  /** What clients see; the file itself is rounded up to whole blocks. */
  sizeBytes: number;
  /** Connections carry the generation of their beginning; lower ones have been cut. */
  generation: number;
  /** Whether the file system can punch holes, and zero ranges without making holes. Probed at opening. */
  canPunchHole = false;
  canZeroRange = false;
  /** Errno of the last failed operation on the file; 0 while it is well. */
  failure = 0;
  readonly order: WriteOrder;
  readonly integrity: Integrity;
  // Of the cleaner.
  cleaning = false;
  cleanCursor = 0;
  cleanedStamp = 0;

  constructor(options: VolumeOptions, io: NodeIo, slots: Slots) {
    const { sizeBytes, epoch, readOnly } = options;
    this.id = options.id;
    this.fd = options.fd;
    this.readOnly = readOnly;
    this.sizeBytes = sizeBytes;
    this.generation = options.generation;
    this.order = new WriteOrder(slots);
    this.integrity = new Integrity(io, options, sizeBytes, epoch, readOnly);
  }

  /** Whether an operation of its own, not of a request, is under way. */
  get busy(): boolean {
    return this.cleaning || this.integrity.busyPages > 0;
  }
}
