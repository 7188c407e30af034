/**
 * What the control plane orders about a replica's content: reconcile, rebuild, repair. One at a time for each volume: a newer
 * order ends the older one, the same one again joins it. It also ends with its source's connection, and with another
 * writer or rebuild (worker/commands.ts). Safe to repeat, whatever ended it: what is copied twice is the same twice.
 */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { addSession } from '@blockwire/shared/export-name.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { ReadChunk, RunningCopy } from '../data/copies.ts';
import type { CopyOrder } from '../data/messages.ts';
import type { Installed } from '../replication/admission.ts';
import { Source } from './source.ts';

/** Where to copy from, and the membership that both sides go by. */
export interface ResyncOrder {
  readonly volumeId: string;
  readonly generation: number;
  readonly epoch: number;
  readonly sourceNodeId: string;
  readonly sourceAddress: string;
  readonly exportName: string;
}

export interface RebuildOrder extends ResyncOrder {
  readonly sinceEpoch: number;
  readonly joinedEpoch: number;
  /** 0: no limit. */
  readonly bytesPerSecond: number;
}

export interface RebuildReport {
  readonly volumeId: string;
  readonly joinedEpoch: number;
  readonly sourceNodeId: string;
  /** Empty: everything is copied and durable. */
  readonly error: string;
}

export interface RebuildProgress {
  readonly volumeId: string;
  readonly joinedEpoch: number;
  readonly copiedBytes: number;
  readonly totalBytes: number;
}

export interface ResyncsHost {
  installed(volumeId: string): Installed;
  sizeBytes(volumeId: string): number;
  copy(order: Omit<CopyOrder, 'request' | 'window'>, read: ReadChunk): RunningCopy;
}

interface Job {
  readonly key: string;
  readonly joinedEpoch: number | null;
  readonly abort: AbortController;
  copy: RunningCopy | null;
  source: Source | null;
  /** Null: done. */
  ended: Promise<BlockwireError | null>;
}

export class Resyncs {
  readonly #host: ResyncsHost;
  readonly #log: Logger;
  readonly #jobs = new Map<string, Job>();
  /** Received from sources that are closed. */
  #receivedBytes = 0;

  constructor(host: ResyncsHost, log: Logger) {
    this.#host = host;
    this.#log = log;
  }

  /**
   * Begins a rebuild; `ended` is called once, unless the same rebuild is under way already. Throws BW_CONFLICT when it is
   * not the one that is installed.
   */
  rebuild(order: RebuildOrder, ended: (report: RebuildReport) => void): void {
    const { volumeId, joinedEpoch, sinceEpoch, bytesPerSecond, sourceNodeId } = order;
    const installed = this.#host.installed(volumeId);
    if (installed.role !== 'rebuilding' || installed.joinedEpoch !== joinedEpoch) {
      throw new BlockwireError('BW_CONFLICT', 'this rebuild is not the one under way');
    }
    const key = `rebuild/${joinedEpoch}`;
    if (this.#jobs.get(volumeId)?.key === key) return;
    const job = this.#start(key, order, joinedEpoch, {
      ...{ what: 'rebuild', epoch: sinceEpoch, bytesPerSecond, regions: null },
    });
    void job.ended.then((error) =>
      ended({ volumeId, joinedEpoch, sourceNodeId, error: error === null ? '' : error.message }),
    );
  }

  /** Resolves when it is durable. Rejects with BW_EPOCH_OLD when the order is not about what is installed, and with why it ended. */
  async reconcile(order: ResyncOrder): Promise<void> {
    const key = `reconcile/${order.generation}/${order.epoch}/${order.sourceNodeId}`;
    await succeed(this.#join(key, order, { what: 'reconcile', epoch: 0, bytesPerSecond: 0, regions: null }));
  }

  /** Blocks of these regions that do not match their checksums; like `reconcile`. */
  async repair(order: ResyncOrder, regions: readonly number[]): Promise<void> {
    const plan: Plan = {
      ...{ what: 'repair', epoch: order.epoch, bytesPerSecond: 0, regions: Uint32Array.from(regions) },
    };
    await succeed(this.#join(`repair/${regions.join(',')}`, order, plan));
  }

  /** Bytes of data received from other replicas so far. */
  get receivedBytes(): number {
    let sum = this.#receivedBytes;
    for (const { source } of this.#jobs.values()) sum += source?.receivedBytes ?? 0;
    return sum;
  }

  /** The rebuilds under way. */
  progress(): RebuildProgress[] {
    return [...this.#jobs].flatMap(([volumeId, { joinedEpoch, copy }]) => {
      const { copiedBytes, totalBytes } = copy ?? { copiedBytes: 0, totalBytes: 0 };
      return joinedEpoch === null ? [] : [{ volumeId, joinedEpoch, copiedBytes, totalBytes }];
    });
  }

  /** From here on nothing new of it begins. */
  abort(volumeId: string, reason: string): void {
    this.#jobs.get(volumeId)?.abort.abort(reason);
  }

  /** Resolves when nothing of it is at work any more. */
  async cancel(volumeId: string, reason: string): Promise<void> {
    this.abort(volumeId, reason);
    await this.#jobs.get(volumeId)?.ended;
  }

  /**
   * Ends a reconcile, and waits until nothing of it is at work. Its order has been given up when a membership is installed
   * again: this replica may be the source of the next one, and must not change behind that.
   */
  async cancelReconcile(volumeId: string, reason: string): Promise<void> {
    if (this.#jobs.get(volumeId)?.key.startsWith('reconcile/')) await this.cancel(volumeId, reason);
  }

  async stop(): Promise<void> {
    await Promise.all([...this.#jobs.keys()].map((id) => this.cancel(id, 'the node is stopping')));
  }

  #join(key: string, order: ResyncOrder, plan: Plan): Job {
    const { volumeId, generation, epoch } = order;
    const installed = this.#host.installed(volumeId);
    if (installed.generation !== generation || installed.epoch !== epoch) {
      throw new BlockwireError('BW_EPOCH_OLD', 'the membership has changed');
    }
    const running = this.#jobs.get(volumeId);
    return running?.key === key ? running : this.#start(key, order, null, plan);
  }

  #start(key: string, order: ResyncOrder, joinedEpoch: number | null, plan: Plan): Job {
    const { volumeId } = order;
    const before = this.#jobs.get(volumeId);
    before?.abort.abort('another one begins');
    const job: Job = {
      key,
      joinedEpoch,
      abort: new AbortController(),
      source: null,
      copy: null,
      ended: Promise.resolve(null),
    };
    this.#jobs.set(volumeId, job);
    job.ended = this.#run(job, order, plan, before ?? null).then((error) => {
      if (this.#jobs.get(volumeId) === job) this.#jobs.delete(volumeId);
      const { sourceNodeId } = order;
      const facts = { volume: volumeId, what: key, source: sourceNodeId, bytes: job.copy?.copiedBytes ?? 0 };
      if (error === null) this.#log.info(facts, 'copied from another replica');
      else this.#log.warn({ ...facts, reason: error.message }, 'copying from another replica ended early');
      return error;
    });
    return job;
  }

  /** Null: done. */
  async #run(job: Job, order: ResyncOrder, plan: Plan, before: Job | null): Promise<BlockwireError | null> {
    const { volumeId, sourceAddress, exportName } = order;
    const { signal } = job.abort;
    try {
      await before?.ended;
      const { epoch } = this.#host.installed(volumeId);
      const source = await Source.open({
        address: sourceAddress,
        exportName: addSession(exportName, { epoch, link: null, attempt: null }),
        sinceEpoch: plan.what === 'rebuild' ? plan.epoch : null,
        signal,
      });
      job.source = source;
      const sizeBytes = this.#host.sizeBytes(volumeId);
      if (source.sizeBytes < sizeBytes) {
        throw new BlockwireError(
          'BW_CONFLICT',
          `the source has ${source.sizeBytes} bytes, this replica ${sizeBytes}`,
        );
      }
      const regions = plan.regions ?? (await source.regions());
      signal.throwIfAborted();
      const copy = this.#host.copy({ ...plan, id: volumeId, regions }, (chunk, into) =>
        source.read(chunk, into),
      );
      job.copy = copy;
      signal.addEventListener('abort', () => copy.cancel(String(signal.reason)), { once: true });
      const error = await copy.ended;
      return error === null ? null : new BlockwireError('BW_PEER_UNREACHABLE', error);
    } catch (error) {
      if (error instanceof BlockwireError) return error;
      return new BlockwireError(
        'BW_PEER_UNREACHABLE',
        error instanceof Error ? error.message : String(error),
      );
    } finally {
      this.#receivedBytes += job.source?.receivedBytes ?? 0;
      job.source?.close();
      job.source = null;
    }
  }
}

/** Regions null: those that the source names. */
type Plan = Pick<CopyOrder, 'what' | 'epoch' | 'bytesPerSecond'> & {
  readonly regions: Uint32Array | null;
};

async function succeed(job: Job): Promise<void> {
  const error = await job.ended;
  if (error !== null) throw error;
}
