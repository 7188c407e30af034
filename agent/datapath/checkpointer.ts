/**
 * When a device sends MARK and CHECKPOINT: at every tick that finds writes since the last mark, one mark at a time.
 *
 *   writes ──▶ tick: MARK n on every connection, fence ──▶ every earlier write is acknowledged ──▶ CHECKPOINT n
 *
 * A mark carries the epoch that the device goes by. A new membership ends the one under way: the nodes would not count it.
 */

export interface CheckpointHost {
  /** Sends MARK on every connection that carries writes, behind what was sent before. */
  sendMark(number: number, epoch: number): void;
  sendCheckpoint(number: number, epoch: number): void;
  /** Begins the fence; ends in `fencePassed`. */
  beginFence(): void;
}

export class Checkpointer {
  readonly #host: CheckpointHost;
  #epoch: number;
  #number = 0;
  #isWaiting = false;
  #hasWrites = false;

  constructor(options: { readonly epoch: number; readonly host: CheckpointHost }) {
    this.#epoch = options.epoch;
    this.#host = options.host;
  }

  /** The latest mark: what every new connection begins with. */
  get latest(): { readonly number: number; readonly epoch: number } {
    return { number: this.#number, epoch: this.#epoch };
  }

  noteWrite(): void {
    this.#hasWrites = true;
  }

  /** A membership that the device goes by from now on. Its first tick marks, written or not: intents may be left. */
  membership(epoch: number): void {
    if (epoch === this.#epoch) return;
    this.#epoch = epoch;
    this.#isWaiting = false;
    this.#hasWrites = true;
  }

  tick(): void {
    if (this.#isWaiting || !this.#hasWrites) return;
    this.#hasWrites = false;
    this.#isWaiting = true;
    this.#number++;
    this.#host.sendMark(this.#number, this.#epoch);
    this.#host.beginFence();
  }

  fencePassed(): void {
    if (!this.#isWaiting) return;
    this.#isWaiting = false;
    this.#host.sendCheckpoint(this.#number, this.#epoch);
  }
}
