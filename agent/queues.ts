/** The queue workers of one device, seen as one: what all of them fetched, which replicas they reach, how they end. */
import { native } from '@blockwire/native/native.ts';
import { RingWorker } from '@blockwire/native/worker-loop.ts';
import { AgreementWriter, createAgreement } from './datapath/agreement.ts';
import { createCounters } from './datapath/counters.ts';
import type { FromWorker, QueueWorkerData, ToWorker } from './datapath/messages.ts';
import { REPLICAS_COUNT_MAX } from './datapath/mirror.ts';
import { createRanges } from './datapath/ranges.ts';

export interface LinkStatus {
  /** Every queue has tried. */
  readonly seen: boolean;
  /** Every queue is connected. */
  readonly up: boolean;
  /** Why one of them is not. */
  readonly reason: string;
}

/** What a device hears from its queues. Replicas are told apart by their slots. */
export interface QueueEvents {
  lost(replica: number, reason: string): void;
  /** A link came up or broke. */
  linked(replica: number): void;
  /** A node did not let a queue in. @param code BW_… */
  refused(replica: number, code: string, reason: string): void;
  settled(queueId: number, epoch: number): void;
  fencePassed(queueId: number, number: number): void;
  held(queueId: number, number: number): void;
  /** A worker ended with an error: its requests are with nobody. */
  failed(error: Error): void;
}

/** What all workers of a device start with. */
export type QueueData = Omit<QueueWorkerData, 'queueId' | 'ranges' | 'agreement' | 'wakeFds' | 'counters'>;

export interface QueuesOptions {
  /** Starts the names of the threads. */
  readonly name: string;
  readonly data: QueueData;
  readonly events: QueueEvents;
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
  readonly #events: QueueEvents;
  readonly #workers: readonly RingWorker[];
  readonly #agreement: AgreementWriter;
  /** By queue, by replica. */
  readonly #links: readonly (readonly QueueLink[])[];

  constructor(options: QueuesOptions) {
    const { events } = options;
    this.#events = events;
    const { queueCount, queueDepth } = options.data;
    const each = <T>(make: (queueId: number) => T): T[] =>
      Array.from({ length: queueCount }, (_, id) => make(id));
    this.memories = each(createCounters);
    this.#links = each(() => Array.from({ length: REPLICAS_COUNT_MAX }, untried));
    const fetched = each(() => Promise.withResolvers<void>());
    const wakeFds = each(() => native.eventfd());
    const agreement = createAgreement();
    this.#agreement = new AgreementWriter(agreement, queueCount);
    this.#agreement.goBy(options.data.membership);
    const shared = { ...options.data, ranges: createRanges(queueCount, queueDepth), agreement, wakeFds };
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
          if (error !== null) events.failed(error);
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
    if (message.type === 'membership') this.#agreement.goBy(message);
    for (const worker of this.#workers) worker.post(message);
  }

  postTo(queueId: number, message: ToWorker): void {
    this.#workers[queueId]!.post(message);
  }

  get count(): number {
    return this.#workers.length;
  }

  /** Another replica has this slot now. */
  forgetLink(replica: number): void {
    for (const byReplica of this.#links) Object.assign(byReplica[replica]!, untried());
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
        const { replica, up, reason, refusal } = message;
        Object.assign(this.#links[queueId]![replica]!, { seen: true, up, reason });
        this.#events.linked(replica);
        if (refusal !== null) this.#events.refused(replica, refusal, reason);
        break;
      }
      case 'lost':
        this.#events.lost(message.replica, message.reason);
        break;
      case 'ready':
        if (this.#agreement.ready(queueId, message.replica, message.epoch)) this.post({ type: 'join' });
        break;
      case 'settled':
        this.#events.settled(queueId, message.epoch);
        break;
      case 'fence':
        this.#events.fencePassed(queueId, message.number);
        break;
      case 'held':
        this.#events.held(queueId, message.number);
        break;
      default:
    }
  }
}

function untried(): QueueLink {
  return { seen: false, up: false, reason: '' };
}
