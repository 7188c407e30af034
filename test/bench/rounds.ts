/** Runs every job on every competitor, round after round, interleaved: A B C, B C A, C A B … */
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Job } from './fio.ts';
import { QuietTimes } from './neighbours.ts';

/** What one run of one job found; times are microseconds per I/O unless the name says otherwise. */
export interface Metrics {
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  /** CPU of the whole guest, fio included. */
  readonly guestCpuUs?: number;
  readonly guestCpuNsPerByte?: number;
  /** CPU of the guest's virtual CPUs as the host sees it: what `guestCpuUs` says, without what others took from it. */
  readonly virtualCpuUs?: number;
  readonly fioCpuUs?: number;
  /** Of all the guest's CPUs: well below 1, the limit is outside the guest, or waiting. */
  readonly guestBusyShare?: number;
  /** CPU of our process in the guest; a part of the guest's. */
  readonly agentCpuUs?: number;
  /** CPU of all servers, their children included; a part of the guest's where they run inside. */
  readonly serverCpuUs?: number;
  /** Calls of io_uring_enter by the agent, per I/O: its system calls. */
  readonly entersPerIo?: number;
  /** Submissions by the agent, per I/O. */
  readonly sqesPerIo?: number;
  /** Of the sends without a copy, those that the kernel copied after all. */
  readonly copiedShare?: number;
  /** What others on this host had of one CPU meanwhile. */
  readonly othersShare?: number;
}

export type MetricName = keyof Metrics;

export interface Sample {
  readonly job: string;
  readonly competitor: string;
  readonly round: number;
  readonly metrics: Metrics | null;
  /** Why there are no metrics. */
  readonly failure: string | null;
}

export interface Competitor {
  readonly name: string;
  /** Runs a job and measures it. Throws when that did not work. */
  measure(job: Job): Promise<Metrics>;
}

/** A competitor that could not be set up takes part nevertheless: all its cells say why there is nothing. */
export function brokenCompetitor(name: string, error: unknown): Competitor {
  return { name, measure: () => Promise.reject(toBlockwireError(error)) };
}

/** Calls `setUp`; what it throws becomes a broken competitor. */
export async function competitorOrFailure(
  name: string,
  setUp: () => Promise<Competitor>,
): Promise<Competitor> {
  try {
    return await setUp();
  } catch (error) {
    return brokenCompetitor(name, error);
  }
}

export interface RoundsOptions {
  readonly jobs: readonly Job[];
  readonly competitors: readonly Competitor[];
  readonly rounds: number;
  readonly onSample: (sample: Sample, done: number, total: number) => void;
  /** For how long, all in all, cells may wait for a quiet host, and be repeated because it was not. */
  readonly patienceMs: number;
  /** Once aborted, no further cell is begun. */
  readonly signal: AbortSignal;
}

/** Never throws: a cell that fails is a sample that says so. */
export async function runRounds(options: RoundsOptions): Promise<Sample[]> {
  const { jobs, competitors, rounds, onSample, signal } = options;
  const quiet = new QuietTimes(options.patienceMs);
  const samples: Sample[] = [];
  const total = rounds * jobs.length * competitors.length;
  for (let round = 0; round < rounds; round++) {
    for (const job of jobs) {
      for (let turn = 0; turn < competitors.length; turn++) {
        const competitor = competitors[(turn + round) % competitors.length]!;
        if (signal.aborted) return samples;
        const cell = { job: job.name, competitor: competitor.name, round };
        let sample: Sample;
        try {
          const { measured, othersShare } = await quiet.measure(() => competitor.measure(job));
          sample = { ...cell, metrics: { ...measured, othersShare }, failure: null };
        } catch (error) {
          // The end of everything is no cell's failure.
          if (signal.aborted) return samples;
          sample = { ...cell, metrics: null, failure: toBlockwireError(error).message };
        }
        samples.push(sample);
        onSample(sample, samples.length, total);
      }
    }
  }
  return samples;
}
