/** What a run holds and has to give back: closed in reverse order, also when it is still being started. */
import { BlockwireError } from '@blockwire/shared/errors.ts';

export interface Closable {
  close(): Promise<void>;
}

export class Resources {
  readonly #held: Promise<Closable | null>[] = [];
  #closed: Promise<void> | null = null;

  /** Starts and keeps something; answers it when it is there. Throws BW_SHUTTING_DOWN once close() was called. */
  async hold<Resource extends Closable>(start: () => Promise<Resource>): Promise<Resource> {
    if (this.#closed !== null) throw new BlockwireError('BW_SHUTTING_DOWN', 'the run was ended');
    const starting = start();
    this.#held.push(starting.catch(() => null));
    return starting;
  }

  /** Waits for what is still being started, then closes everything. Idempotent; rejects with the first failure. */
  close(): Promise<void> {
    this.#closed ??= this.#closeAll();
    return this.#closed;
  }

  async #closeAll(): Promise<void> {
    const failures: unknown[] = [];
    for (let starting = this.#held.pop(); starting !== undefined; starting = this.#held.pop()) {
      try {
        await (await starting)?.close();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }
}
