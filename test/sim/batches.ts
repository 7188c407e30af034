/** Runs many seeds, in this process or in several. What comes out is the same: the first seed that fails, or all totals. */
import { type ChildProcess, fork } from 'node:child_process';
import type { Mutation } from './mutations.ts';
import { drawPlan } from './plan.ts';
import { simulate } from './simulation.ts';

/** Seeds that a process takes at a time. */
const BATCH_SEEDS = 50;

export interface Batch {
  readonly from: number;
  readonly count: number;
  readonly mutation: Mutation;
}

export interface Totals {
  events: number;
  writes: number;
  reads: number;
  flushes: number;
  losses: number;
  rebuilds: number;
}

export interface Result {
  readonly totals: Totals;
  /** The first one; later seeds have not been run. */
  readonly failure: { readonly seed: number; readonly violation: string } | null;
}

/** @param onTrace gets the trace of each seed, line by line */
export async function runBatch(batch: Batch, onTrace?: (line: string) => void): Promise<Result> {
  const { from, count, mutation } = batch;
  const totals = noTotals();
  for (let seed = from; seed < from + count; seed++) {
    const traced = onTrace !== undefined;
    const outcome = await simulate(drawPlan(seed), { mutation, traced });
    if (traced) for (const line of outcome.trace) onTrace(line);
    if (outcome.violation !== null) return { totals, failure: { seed, violation: outcome.violation } };
    const { eventCount: events, rebuilds, counts } = outcome;
    add(totals, { ...counts, events, rebuilds });
  }
  return { totals, failure: null };
}

/** As `runBatch`, in several processes. Rejects when one of them ends by itself. */
export async function runBatches(all: Batch, jobs: number): Promise<Result> {
  const { from, count, mutation } = all;
  const batches: Batch[] = [];
  for (let at = from; at < from + count; at += BATCH_SEEDS) {
    batches.push({ from: at, count: Math.min(BATCH_SEEDS, from + count - at), mutation });
  }
  const results: Result[] = [];
  let next = 0;
  // Batches are begun in order, so those before one that fails are all run.
  let end = batches.length;
  const serve = async (child: ChildProcess): Promise<void> => {
    while (next < end) {
      const index = next++;
      const result = await asked(child, batches[index]!);
      results[index] = result;
      if (result.failure !== null) end = Math.min(end, index);
    }
  };
  const children = Array.from({ length: Math.min(jobs, batches.length) }, () =>
    fork(import.meta.filename.replace('batches.ts', 'batch-process.ts')),
  );
  try {
    await Promise.all(children.map(serve));
  } finally {
    for (const child of children) child.disconnect();
  }
  const totals = noTotals();
  for (const result of results) {
    add(totals, result.totals);
    if (result.failure !== null) return { totals, failure: result.failure };
  }
  return { totals, failure: null };
}

function asked(child: ChildProcess, batch: Batch): Promise<Result> {
  return new Promise((resolve, reject) => {
    const exited = (code: number | null): void => reject(new Error(`a process has ended with code ${code}`));
    child.once('exit', exited);
    child.once('message', (result) => {
      child.off('exit', exited);
      resolve(result as Result);
    });
    child.send(batch);
  });
}

function noTotals(): Totals {
  return { events: 0, writes: 0, reads: 0, flushes: 0, losses: 0, rebuilds: 0 };
}

function add(totals: Totals, more: Totals): void {
  for (const key of Object.keys(totals) as (keyof Totals)[]) totals[key] += more[key];
}
