/**
 * Regions of a replica written anew from a peer in sync: blocks that do not match their checksums, or that differ. Pure; the
 * order of writes here, the peer and the disk are the host's.
 *
 *   region: all of it is ours (write order) ──▶ is it calm? ──▶ read from the peer ──▶ write ──▶ given back
 *
 * A writer may be at work. While the region is ours no write of it begins here, so the peer can only be ahead, and what it
 * is ahead by comes here next. It must not be behind: a write that is done here and still on its way to the peer would be
 * gone for ever. So the region has to be calm, asked while it is ours:
 *
 * - It has no intent: a checkpoint has covered every write that was done here.
 * - The installed epoch is the one at which the peer was named: nothing was written here without it.
 */
export interface RepairHost {
  /** Makes the region ours; ends in `granted`. */
  acquire(region: number): void;
  isCalm(region: number): boolean;
  /** Reads from the peer what is to be written; ends in `readDone`. */
  read(region: number): void;
  /** Ends in `written`. */
  write(region: number): void;
  /** Gives the region back. */
  release(region: number): void;
  /** @param left regions that could not be repaired: to be tried again later, if not with this peer */
  ended(left: readonly number[]): void;
}

type State = 'new' | 'waiting' | 'reading' | 'writing' | 'ended';

export class Repair {
  readonly #regions: readonly number[];
  readonly #host: RepairHost;
  readonly #left: number[] = [];
  #index = 0;
  #state: State = 'new';
  #isCancelled = false;

  constructor(regions: readonly number[], host: RepairHost) {
    this.#regions = regions;
    this.#host = host;
  }

  start(): void {
    if (this.#state === 'new') this.#next();
  }

  granted(): void {
    const region = this.#regions[this.#index]!;
    if (this.#isCancelled || !this.#host.isCalm(region)) {
      this.#end(region, false);
    } else {
      this.#state = 'reading';
      this.#host.read(region);
    }
  }

  /** @param error the peer cannot read it, or is away */
  readDone(error: string | null): void {
    if (this.#state !== 'reading') return;
    const region = this.#regions[this.#index]!;
    if (error === null) {
      this.#state = 'writing';
      this.#host.write(region);
    } else {
      this.#end(region, false);
    }
  }

  written(error: string | null): void {
    this.#end(this.#regions[this.#index]!, error === null);
  }

  /** Stops it, once what it waits for or writes is over. The peer's answer is not waited for. */
  cancel(): void {
    this.#isCancelled = true;
    if (this.#state === 'new') this.#next();
    else if (this.#state === 'reading') this.#end(this.#regions[this.#index]!, false);
  }

  #next(): void {
    const region = this.#regions[this.#index];
    if (region === undefined || this.#isCancelled) {
      this.#state = 'ended';
      this.#host.ended([...this.#left, ...this.#regions.slice(this.#index)]);
    } else {
      this.#state = 'waiting';
      this.#host.acquire(region);
    }
  }

  #end(region: number, isRepaired: boolean): void {
    this.#host.release(region);
    if (!isRepaired) this.#left.push(region);
    this.#index++;
    this.#next();
  }
}
