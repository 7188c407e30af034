/** Scrubs that the control plane orders: one at a time for each volume, against another replica, at a set rate. */
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { addSession } from '@blockwire/shared/export-name.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { ByteRange } from '../replication/fresh.ts';
import type { ResyncOrder, ResyncsHost } from './resyncs.ts';
import { Scrub, type ScrubHost, type ScrubOutcome } from './scrub.ts';
import { Source } from './source.ts';

export interface ScrubReport {
  readonly volumeId: string;
  readonly scannedBytes: number;
  readonly mismatchedRegions: number;
  readonly repairedRegions: number;
  /** Empty: everything was compared. */
  readonly error: string;
}

export interface ScrubsHost extends ResyncsHost {
  /** Regions that were ever written here. */
  writtenRegions(volumeId: string): Iterable<number>;
  /** Reads a range; false: it does not match its checksums, or cannot be read. */
  peek(volumeId: string, range: ByteRange, into: Uint8Array, isAlone: boolean): Promise<boolean>;
}

interface Job {
  readonly abort: AbortController;
  ended: Promise<void>;
}

export class Scrubs {
  readonly #host: ScrubsHost;
  readonly #log: Logger;
  readonly #jobs = new Map<string, Job>();
  /** Regions that were found to differ with good checksums on both sides. */
  differingCount = 0;

  constructor(host: ScrubsHost, log: Logger) {
    this.#host = host;
    this.#log = log;
  }

  /**
   * Begins a scrub, whose end is told to `ended`; one that is under way goes on. Throws BW_CONFLICT on a replica that is
   * not in sync.
   * @param bytesPerSecond 0: no limit
   */
  start(order: ResyncOrder, bytesPerSecond: number, ended: (report: ScrubReport) => void): void {
    const { volumeId } = order;
    if (this.#host.installed(volumeId).role !== 'inSync') {
      throw new BlockwireError('BW_CONFLICT', 'the replica is not in sync');
    }
    if (this.#jobs.has(volumeId)) return;
    const job: Job = { abort: new AbortController(), ended: Promise.resolve() };
    this.#jobs.set(volumeId, job);
    job.ended = this.#run(order, bytesPerSecond, job.abort.signal).then((report) => {
      this.#jobs.delete(volumeId);
      this.#log.info({ ...report }, 'scrubbed');
      ended(report);
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

  async stop(): Promise<void> {
    await Promise.all([...this.#jobs.keys()].map((id) => this.cancel(id, 'the node is stopping')));
  }

  async #run(order: ResyncOrder, bytesPerSecond: number, signal: AbortSignal): Promise<ScrubReport> {
    const { volumeId, sourceAddress, exportName } = order;
    const sizeBytes = this.#host.sizeBytes(volumeId);
    let scrub: Scrub | null = null;
    let source: Source | null = null;
    let error = '';
    try {
      const { epoch } = this.#host.installed(volumeId);
      source = await Source.open({
        address: sourceAddress,
        exportName: addSession(exportName, { epoch, link: null, attempt: null }),
        sinceEpoch: 0,
        signal,
      });
      const regions = new Set([...(await source.regions()), ...this.#host.writtenRegions(volumeId)]);
      const host = this.#scrubHost(order, source, signal);
      scrub = new Scrub({ sizeBytes, bytesPerSecond, host });
      await scrub.run([...regions].sort((a, b) => a - b));
    } catch (thrown) {
      error = signal.aborted ? String(signal.reason) : toBlockwireError(thrown).message;
    } finally {
      source?.close();
    }
    return this.#report(volumeId, scrub?.outcome ?? null, error);
  }

  #report(volumeId: string, outcome: ScrubOutcome | null, error: string): ScrubReport {
    const differing = [...(outcome?.differing ?? [])];
    this.differingCount += differing.length;
    if (differing.length > 0) {
      this.#log.error(
        { volume: volumeId, regions: differing.slice(0, 100) },
        'two replicas differ, and the checksums of both are good: nobody can tell which one is right',
      );
    }
    return {
      ...{ volumeId, error, scannedBytes: outcome?.scannedBytes ?? 0 },
      mismatchedRegions: outcome?.mismatched.size ?? 0,
      repairedRegions: outcome?.repaired.size ?? 0,
    };
  }

  #scrubHost({ volumeId, epoch }: ResyncOrder, source: Source, signal: AbortSignal): ScrubHost {
    return {
      readLocal: (chunk, into, isAlone) => {
        signal.throwIfAborted();
        return this.#host.peek(volumeId, chunk, into, isAlone);
      },
      readSource: async (chunk, into) => {
        try {
          await source.read(chunk, into);
          return true;
        } catch (error) {
          if (error instanceof BlockwireError && error.code === 'BW_IO') return false;
          throw error;
        }
      },
      repair: async (region) => {
        signal.throwIfAborted();
        const copy = this.#host.copy(
          {
            ...{ id: volumeId, what: 'repair', epoch, bytesPerSecond: 0 },
            regions: Uint32Array.of(region),
          },
          (chunk, into) => source.read(chunk, into),
        );
        return (await copy.ended) === null;
      },
      pause: (milliseconds) => pause(milliseconds, signal),
    };
  }
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onAbort = (): void => {
    clearTimeout(timer);
    reject(new BlockwireError('BW_SHUTTING_DOWN', String(signal.reason)));
  };
  const timer = setTimeout(() => {
    signal.removeEventListener('abort', onAbort);
    resolve();
  }, milliseconds);
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
  return promise;
}
