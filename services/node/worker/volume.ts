/** A volume as its worker sees it: the open data file, what the file system can do, and who writes where. */
import type { Slots } from './slots.ts';
import { WriteOrder } from './write-order.ts';

export interface VolumeOptions {
  readonly id: string;
  readonly fd: number;
  readonly sizeBytes: number;
  readonly generation: number;
}

export class Volume {
  readonly id: string;
  /** Opened by the main thread, which also closes it. */
  readonly fd: number;
  /** What clients see; the file itself is rounded up to whole blocks. */
  readonly sizeBytes: number;
  /** Connections carry the generation of their beginning; lower ones have been cut. */
  generation: number;
  /** Whether the file system can punch holes, and zero ranges without making holes. Probed at opening. */
  canPunchHole = false;
  canZeroRange = false;
  /** Errno of the last failed operation on the file; 0 while it is well. */
  failure = 0;
  readonly order: WriteOrder;

  constructor(options: VolumeOptions, slots: Slots) {
    this.id = options.id;
    this.fd = options.fd;
    this.sizeBytes = options.sizeBytes;
    this.generation = options.generation;
    this.order = new WriteOrder(slots);
  }
}
