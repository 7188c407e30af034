/**
 * Start and stop of a process. Parts register how they stop; on SIGTERM or SIGINT they stop in reverse order
 * of registration, each within a bound, so that a process that was asked to end always ends.
 */
import type { Logger } from './log.ts';

const STOP_STEP_MS_MAX = 10_000;

export class Lifecycle {
  readonly #log: Logger;
  readonly #steps: { name: string; stop: () => Promise<void> | void }[] = [];
  #stopping: Promise<number> | null = null;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Registers a part that runs now; it is stopped before everything registered earlier. */
  onStop(name: string, stop: () => Promise<void> | void): void {
    this.#steps.push({ name, stop });
  }

  get stopping(): boolean {
    return this.#stopping !== null;
  }

  /** Stops every part once. Resolves with the exit code: 0, or 1 if a part failed to stop. */
  stop(): Promise<number> {
    this.#stopping ??= this.#stopAll();
    return this.#stopping;
  }

  /** Ends the process on SIGTERM and SIGINT. */
  exitOnSignals(): void {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.on(signal, () => {
        this.#log.info({ signal }, 'stopping');
        void this.stop().then((code) => process.exit(code));
      });
    }
  }

  async #stopAll(): Promise<number> {
    let exitCode = 0;
    for (const { name, stop } of this.#steps.reverse()) {
      const { promise: late, resolve } = Promise.withResolvers<'late'>();
      const timer = setTimeout(resolve, STOP_STEP_MS_MAX, 'late');
      try {
        const outcome = await Promise.race([Promise.resolve(stop()), late]);
        if (outcome === 'late') throw new Error(`did not stop within ${STOP_STEP_MS_MAX} ms`);
      } catch (error) {
        exitCode = 1;
        this.#log.error({ part: name, err: error }, 'a part failed to stop');
      } finally {
        clearTimeout(timer);
      }
    }
    return exitCode;
  }
}
