/** Makes a failing simulation smaller: leaves out what it fails without. */
import type { Mutation } from './mutations.ts';
import type { Plan } from './plan.ts';
import { simulate } from './simulation.ts';

const RUNS_MAX = 400;

/** The smallest plan found that still fails, and its trace, as lines. */
export async function shrink(plan: Plan, mutation: Mutation): Promise<string[]> {
  let runs = 0;
  const fails = async (candidate: Plan): Promise<boolean> => {
    if (++runs > RUNS_MAX) return false;
    return (await simulate(candidate, { mutation, traced: false })).violation !== null;
  };
  let smallest = plan;
  for (const part of ['faults', 'ops'] as const) {
    for (let size = Math.ceil(smallest[part].length / 2); size >= 1; size = Math.floor(size / 2)) {
      for (let at = 0; at < smallest[part].length; ) {
        const kept = smallest[part].filter((_, i) => i < at || i >= at + size);
        const candidate = { ...smallest, [part]: kept };
        if (await fails(candidate)) smallest = candidate;
        else at += size;
      }
    }
  }
  const { violation, trace } = await simulate(smallest, { mutation, traced: true });
  return [
    `smallest plan after ${runs} runs: ${smallest.ops.length} of ${plan.ops.length} requests, ` +
      `${smallest.faults.length} of ${plan.faults.length} faults: ${violation}`,
    ...smallest.faults.map((fault) => `  ${JSON.stringify(fault)}`),
    ...trace,
  ];
}
