/** The queue workers of one device, seen as one: what all of them fetched, which replicas all of them reach, how they end. */
import { native } from '@blockwire/native/native.ts';
import { RingWorker } from '@blockwire/native/worker-loop.ts';
import { createCounters } from './datapath/counters.ts';
import type { FromWorker, QueueWorkerData, ToWorker } from './datapath/messages.ts';
import { createWriteRanges } from './datapath/write-ranges.ts';

export interface LinkStatus {
  /** Every queue has tried. */
  readonly seen: boolean;
  /** Every queue is connected. */
  readonly up: boolean;
  /** Why one of them is not. */
  readonly reason: string;
}

export interface QueuesOptions
  extends Omit<QueueWorkerData, 'queueId' | 'writeRanges' | 'wakeFds' | 'counters'> {
  /** Starts the names of the threads. */
  readonly name: string;
  readonly onLost: (replica: number, reason: string) => void;
  readonly onLinks: (replica: number) => void;
  /** A worker ended with an error: its requests are with nobody. */
  readonly onFailure: (error: Error) => void;
}

interface QueueLink {
  seen: boolean;
  up: boolean;
  reason: string;
}

export class Queues {
  /** By queue: its counters and latency histograms. */
  readonly memories: readonly SharedArrayBuffer[];
  /** All tags of all queues are with the kernel. Rejects when a worker ends first. */
  readonly fetched: Promise<void>;
  /** Every worker is gone. */
  readonly ended: Promise<void>;
  readonly #options: QueuesOptions;
  readonly #workers: readonly RingWorker[];
  /** By queue, by replica. */
  readonly #links: readonly (readonly QueueLink[])[];

  constructor(options: QueuesOptions) {
    this.#options = options;
    const { queueCount, queueDepth, replicas } = options;
    const each = <T>(make: (queueId: number) => T): T[] =>
      Array.from({ length: queueCount }, (_, id) => make(id));
    this.memories = each(createCounters);
    this.#links = each(() => replicas.map(() => ({ seen: false, up: false, reason: '' })));
    const fetched = each(() => Promise.withResolvers<void>());
    const wakeFds = each(() => native.eventfd());
    const shared = { ...dataOf(options), writeRanges: createWriteRanges(queueCount, queueDepth), wakeFds };
    this.#workers = each((queueId) => {
      const data: QueueWorkerData = { ...shared, queueId, counters: this.memories[queueId]! };
      return new RingWorker({
        module: new URL('./datapath/queue-worker.ts', import.meta.url),
        name: `${options.name}-${queueId}`,
        data,
        wakeFd: wakeFds[queueId]!,
        onMessage: (message) => this.#hear(queueId, message as FromWorker, fetched[queueId]!.resolve),
        onExit: (error) => {
          fetched[queueId]!.reject(error ?? new Error('the queue worker ended'));
          if (error !== null) options.onFailure(error);
        },
      });
    });
    this.fetched = Promise.all(fetched.map(({ promise }) => promise)).then(() => {});
    // Awaited only while the device starts.
    this.fetched.catch(() => {});
    this.ended = Promise.all(this.#workers.map(({ exited }) => exited)).then(() => {
      for (const fd of wakeFds) native.close(fd);
    });
  }

  post(message: ToWorker): void {
    for (const worker of this.#workers) worker.post(message);
  }

  link(replica: number): LinkStatus {
    const links = this.#links.map((byReplica) => byReplica[replica]!);
    return {
      seen: links.every(({ seen }) => seen),
      up: links.every(({ up }) => up),
      reason: links.find(({ up }) => !up)?.reason ?? '',
    };
  }

  /** Whether every queue reaches one of these replicas. @param mask a bit for each replica */
  serves(mask: number): boolean {
    return this.#links.every((byReplica) =>
      byReplica.some(({ up }, replica) => up && (mask & (1 << replica)) !== 0),
    );
  }

  /** Ends the threads without their consent; what was in flight is with nobody. */
  async terminate(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }

  #hear(queueId: number, message: FromWorker, fetched: () => void): void {
    switch (message.type) {
      case 'fetched':
        fetched();
        break;
      case 'link': {
        const { replica, up, reason } = message;
        Object.assign(this.#links[queueId]![replica]!, { seen: true, up, reason });
        this.#options.onLinks(replica);
        break;
      }
      case 'lost':
        this.#options.onLost(message.replica, message.reason);
        break;
      default:
    }
  }
}

/** Without what does not belong to the workers: functions cannot be sent to them. */
function dataOf({
  name,
  onLost,
  onLinks,
  onFailure,
  ...data
}: QueuesOptions): Omit<QueueWorkerData, 'queueId' | 'writeRanges' | 'wakeFds' | 'counters'> {
  return data;
}
