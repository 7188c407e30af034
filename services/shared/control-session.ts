/**
 * A process's standing connection to the control plane: register, watch for commands, heartbeat; and all of it again,
 * for ever, when the control plane goes away. The data path never waits for it.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from './log.ts';

const RETRY_MS_MIN = 250;
const RETRY_MS_MAX = 5_000;

/** A server stream of commands; grpc-js's ClientReadableStream fits. */
export interface CommandStream<Command> {
  on(event: 'data', listener: (command: Command) => void): unknown;
  on(event: 'error', listener: (error: Error) => void): unknown;
  on(event: 'end', listener: () => void): unknown;
  cancel(): void;
}

export interface ControlSessionOptions<Command> {
  readonly log: Logger;
  /** Announces this process; resolves with the heartbeat interval in milliseconds. The signal ends it at `stop`. */
  readonly register: (signal: AbortSignal) => Promise<number>;
  readonly heartbeat: (signal: AbortSignal) => Promise<void>;
  readonly watch: () => CommandStream<Command>;
  /** Begins a command; called in the order of arrival, without waiting for the last one to end. Must not reject. */
  readonly onCommand: (command: Command) => Promise<void>;
}

export class ControlSession<Command> {
  readonly #options: ControlSessionOptions<Command>;
  readonly #stop = new AbortController();
  readonly #registered = Promise.withResolvers<void>();
  #running: Promise<void> = Promise.resolve();
  #connected = false;
  readonly #commands = new Set<Promise<void>>();

  constructor(options: ControlSessionOptions<Command>) {
    this.#options = options;
  }

  /** Whether the last registration still stands. */
  get connected(): boolean {
    return this.#connected;
  }

  /** Starts; resolves at the first registration, however long that takes. */
  start(): Promise<void> {
    this.#running = this.#run();
    return this.#registered.promise;
  }

  /** Ends the session; commands under way are awaited. */
  async stop(): Promise<void> {
    this.#stop.abort();
    this.#registered.resolve();
    await this.#running;
    await Promise.all(this.#commands);
  }

  async #run(): Promise<void> {
    let delayMs = RETRY_MS_MIN;
    let complained = false;
    while (!this.#stop.signal.aborted) {
      try {
        const intervalMs = await this.#options.register(this.#stop.signal);
        this.#connected = true;
        this.#registered.resolve();
        if (complained) this.#options.log.info('the control plane is back');
        complained = false;
        delayMs = RETRY_MS_MIN;
        await this.#serve(intervalMs);
      } catch (error) {
        if (!complained && !this.#stop.signal.aborted) {
          this.#options.log.warn({ err: error }, 'no control plane; trying again until it answers');
        }
        complained = true;
      }
      this.#connected = false;
      await this.#pause(delayMs);
      delayMs = Math.min(delayMs * 2, RETRY_MS_MAX);
    }
  }

  /** Until the watch ends, a heartbeat fails, or `stop`. */
  async #serve(intervalMs: number): Promise<void> {
    const stream = this.#options.watch();
    const ended = new Promise<void>((resolve, reject) => {
      stream.on('data', (command) => {
        const running = this.#options.onCommand(command);
        this.#commands.add(running);
        void running.finally(() => this.#commands.delete(running));
      });
      stream.on('error', reject);
      stream.on('end', resolve);
    });
    // Awaited below on every path; this only keeps an early end from counting as unhandled.
    ended.catch(() => {});
    try {
      while (!this.#stop.signal.aborted) {
        const outcome = await Promise.race([ended.then(() => 'ended'), this.#pause(intervalMs)]);
        if (outcome === 'ended') return;
        await this.#options.heartbeat(this.#stop.signal);
      }
    } finally {
      stream.cancel();
    }
  }

  async #pause(milliseconds: number): Promise<void> {
    await sleep(milliseconds, undefined, { signal: this.#stop.signal }).catch(() => {});
  }
}
