/** The volumes that a worker owns. Opening one probes what its file system can do, beyond the end of the data. */
import { blockFrom } from './block-math.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, type NodeIo } from './node-io.ts';
import type { Slots } from './slots.ts';
import { Volume, type VolumeOptions } from './volume.ts';

/** Completions with a data word from here on belong to probes, not to slots. */
export const PROBE_BASE = 0x4000_0000;

const ZERO_RANGE = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
const PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

interface Probe {
  readonly volume: Volume;
  readonly opened: (volume: Volume) => void;
  zeroed: boolean;
}

export class VolumeTable {
  readonly #io: NodeIo;
  readonly #slots: Slots;
  readonly #volumes = new Map<string, Volume>();
  readonly #probes = new Map<number, Probe>();
  #probeCount = 0;

  constructor(io: NodeIo, slots: Slots) {
    this.#io = io;
    this.#slots = slots;
  }

  get(id: string): Volume | undefined {
    return this.#volumes.get(id);
  }

  values(): IterableIterator<Volume> {
    return this.#volumes.values();
  }

  /** Nothing of it may be at work. */
  delete(id: string): void {
    this.#volumes.get(id)?.integrity.release();
    this.#volumes.delete(id);
  }

  /** Probes first whether ranges can be zeroed, then whether holes can be punched, which also undoes the first. */
  open(options: VolumeOptions, opened: (volume: Volume) => void): void {
    const volume = new Volume(options, this.#io, this.#slots);
    this.#volumes.set(volume.id, volume);
    if (volume.readOnly) {
      opened(volume);
      return;
    }
    const key = PROBE_BASE + this.#probeCount++;
    this.#probes.set(key, { volume, opened, zeroed: false });
    this.#io.fallocate(volume.fd, ZERO_RANGE, blockFrom(volume.sizeBytes), 1, key);
  }

  probed(key: number, result: number): void {
    const probe = this.#probes.get(key)!;
    const { volume } = probe;
    if (!probe.zeroed) {
      probe.zeroed = true;
      volume.canZeroRange = result >= 0;
      this.#io.fallocate(volume.fd, PUNCH_HOLE, blockFrom(volume.sizeBytes), 1, key);
      return;
    }
    volume.canPunchHole = result >= 0;
    this.#probes.delete(key);
    probe.opened(volume);
  }
}
