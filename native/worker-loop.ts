/**
 * A data worker's thread: one ring, one loop that blocks in `enter`, and a way for the main thread to wake it.
 *
 *   main thread                               worker thread
 *   RingWorker.post(message) ─ postMessage ─▶ port queue
 *                            └ eventfd ─────▶ read completes ─▶ receiveMessageOnPort ─▶ onMessage
 *
 * The worker never returns to its event loop, so nothing in it may be asynchronous. A timeout on the ring ends every
 * wait within 100 ms: V8 stops a terminated worker only once it is back in JavaScript, and process.exit waits for that.
 * The clock is read at these ticks only: reading it allocates a number.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, Worker, workerData } from 'node:worker_threads';
import { allocateRegion, PAGE_SIZE_BYTES, type Region } from './memory.ts';
import { native } from './native.ts';
import type { PollWindow } from './poll-window.ts';
import { type CompletionHandler, Ring, type RingOptions } from './ring.ts';
import { IoringOp } from './uapi/io-uring.ts';

/** The longest that a terminated worker stays in the kernel, and the grain of `onTick`. */
const TICK_MS = 100;
const READ_WAKE = 0;
const TICK = 1;
/** Where the tick's struct __kernel_timespec is, behind the eventfd's counter. */
const TIMESPEC_AT = 64;

export interface WorkerLoopHooks {
  /** One message of the main thread, in order. */
  onMessage(message: unknown): void;
  /** The eventfd was signalled, by `post` or by whoever else has it; after the messages. */
  onWake?(): void;
  /** After each batch of completions, before the next `enter`: the place to send what the batch gathered. */
  onBatchEnd?(): void;
  /** After that: the longest that the next `enter` may wait, in whole microseconds; -1, the default: without bound. */
  waitUsMax?(): number;
  /** For how long that `enter` may look for its end before it sleeps (RingOptions.clock). Default: it may not. */
  readonly pollWindow?: PollWindow;
  /** Whether it may at all. */
  mayPoll?(): boolean;
  /** It did, and its end was found so or not. */
  onPolled?(found: boolean): void;
  /** Every 100 ms; for deadlines. @param nowMs monotonic milliseconds */
  onTick?(nowMs: number): void;
}

export class WorkerLoop implements CompletionHandler {
  readonly ring: Ring;
  readonly #port: MessagePort;
  readonly #wakeFd: number;
  /** The eventfd's counter and the tick's interval. */
  readonly #memory: Region;
  readonly #id: number;
  #hooks: WorkerLoopHooks | null = null;
  #stopped = false;

  constructor(options: { ring: RingOptions; port: MessagePort; wakeFd: number }) {
    this.ring = new Ring(options.ring);
    this.#port = options.port;
    this.#wakeFd = options.wakeFd;
    this.#memory = allocateRegion(PAGE_SIZE_BYTES);
    this.#memory.view.setBigInt64(TIMESPEC_AT + 8, BigInt(TICK_MS) * 1_000_000n, true);
    this.#id = this.ring.addHandler(this);
  }

  /** Runs until `stop`. */
  run(hooks: WorkerLoopHooks): void {
    const { pollWindow: window } = hooks;
    this.#hooks = hooks;
    this.#awaitWake();
    this.#awaitTick();
    // What was posted before the loop ran.
    this.#receive();
    while (!this.#stopped) {
      hooks.onBatchEnd?.();
      const waits = !this.#stopped && !this.ring.hasCompletions;
      const polls = waits && window !== undefined && hooks.mayPoll?.() === true;
      const pollUs = polls ? window.us : 0;
      this.ring.enterUs(waits ? 1 : 0, hooks.waitUsMax?.() ?? -1, pollUs);
      if (polls) {
        const found = window.note(this.ring.waitedUs);
        if (pollUs > 0) hooks.onPolled?.(found);
      }
      this.ring.dispatch();
    }
    this.ring.close();
  }

  /** Ends `run` after the current batch. */
  stop(): void {
    this.#stopped = true;
  }

  /** To the main thread's `onMessage`. */
  post(message: unknown): void {
    this.#port.postMessage(message);
  }

  complete(operation: number, _data: number, result: number): void {
    if (operation === TICK) {
      this.#awaitTick();
      this.#hooks?.onTick?.(performance.now());
    } else if (result >= 0) {
      this.#awaitWake();
      this.#receive();
      this.#hooks?.onWake?.();
    }
  }

  #awaitTick(): void {
    const address = this.#memory.address + TIMESPEC_AT;
    this.ring.prepare(IoringOp.TIMEOUT, 0, 0, -1, 0, address, 1, 0, this.#id, TICK, 0);
  }

  #awaitWake(): void {
    this.ring.prepare(
      IoringOp.READ,
      0,
      0,
      this.#wakeFd,
      0,
      this.#memory.address,
      8,
      0,
      this.#id,
      READ_WAKE,
      0,
    );
  }

  #receive(): void {
    for (;;) {
      const received = receiveMessageOnPort(this.#port);
      if (received === undefined) return;
      this.#hooks?.onMessage(received.message);
    }
  }
}

interface RingWorkerData {
  readonly wakeFd: number;
  readonly data: unknown;
}

/** In a worker's module: its loop, and the data that RingWorker was made with. */
export function openWorkerLoop(ring: RingOptions): { loop: WorkerLoop; data: unknown } {
  if (parentPort === null) throw new Error('openWorkerLoop belongs into a worker thread');
  const { wakeFd, data } = workerData as RingWorkerData;
  return { loop: new WorkerLoop({ ring, port: parentPort, wakeFd }), data };
}

/** The main thread's side of a worker. */
export class RingWorker {
  readonly #worker: Worker;
  readonly #wakeFd: number;
  readonly #exited: Promise<number>;

  constructor(options: {
    module: URL;
    name: string;
    data: unknown;
    /** An eventfd that others signal too; its maker closes it, after the worker's end. Default: one of its own. */
    wakeFd?: number;
    onMessage: (message: unknown) => void;
    /** The worker ended by itself: an uncaught error, or `stop`. */
    onExit: (error: Error | null) => void;
  }) {
    this.#wakeFd = options.wakeFd ?? native.eventfd();
    const workerData: RingWorkerData = { wakeFd: this.#wakeFd, data: options.data };
    this.#worker = new Worker(options.module, { workerData, name: options.name });
    let failure: Error | null = null;
    this.#worker.on('message', options.onMessage);
    this.#worker.on('error', (error) => {
      failure = error instanceof Error ? error : new Error(String(error));
    });
    this.#exited = new Promise((resolve) => {
      this.#worker.on('exit', (code) => {
        if (options.wakeFd === undefined) native.close(this.#wakeFd);
        resolve(code);
        options.onExit(failure);
      });
    });
  }

  /** Posts a message and wakes the worker. After its end this does nothing. */
  post(message: unknown): void {
    this.#worker.postMessage(message);
    this.#wake();
  }

  /** Resolves with the exit code once the thread is gone. */
  get exited(): Promise<number> {
    return this.#exited;
  }

  /** Ends the thread without its consent: within 100 ms, also when it is blocked in the kernel. */
  async terminate(): Promise<void> {
    const ended = this.#worker.terminate();
    this.#wake();
    await ended;
  }

  #wake(): void {
    if (this.#worker.threadId !== -1) native.eventfdSignal(this.#wakeFd);
  }
}
