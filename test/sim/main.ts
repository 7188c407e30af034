/**
 * Runs simulations.
 *
 *   npm run sim -- --seeds N [--from S] [--jobs N] [--mutation NAME] [--trace] [--no-shrink]
 *   npm run sim -- --list-mutations
 *
 * Exit code 0: no violation. 1: one was found; its seed and the smallest plan that still shows it are printed.
 */
import { parseArgs } from 'node:util';
import { type Batch, runBatch, runBatches } from './batches.ts';
import { isMutation, MUTATIONS, type Mutation } from './mutations.ts';
import { drawPlan } from './plan.ts';
import { shrink } from './shrink.ts';

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '1000' },
    from: { type: 'string', default: '1' },
    jobs: { type: 'string', default: '1' },
    mutation: { type: 'string' },
    'list-mutations': { type: 'boolean', default: false },
    trace: { type: 'boolean', default: false },
    'no-shrink': { type: 'boolean', default: false },
  },
});

const say = (text: string): void => void process.stdout.write(`${text}\n`);

function wholeNumber(text: string, name: string): number {
  const number = Number(text);
  if (Number.isSafeInteger(number) && number >= 0) return number;
  process.stderr.write(`--${name} takes a whole number, not '${text}'\n`);
  process.exit(2);
}

function mutationNamed(name: string | undefined): Mutation {
  if (name === undefined) return null;
  if (isMutation(name)) return name;
  process.stderr.write(`no such mutation: ${name}; --list-mutations names them\n`);
  process.exit(2);
}

if (values['list-mutations']) {
  for (const name of Object.keys(MUTATIONS)) say(name);
  process.exit(0);
}

// Errors are part of the protocol here: nobody reads where they were made.
Error.stackTraceLimit = values.trace ? 10 : 0;
const count = wholeNumber(values.seeds, 'seeds');
const from = wholeNumber(values.from, 'from');
const jobs = Math.max(1, wholeNumber(values.jobs, 'jobs'));
const mutation = mutationNamed(values.mutation);
const startedAt = performance.now();
const batch: Batch = { from, count, mutation };
const { totals, failure } =
  jobs === 1 || values.trace
    ? await runBatch(batch, values.trace ? say : undefined)
    : await runBatches(batch, jobs);
// Apart from the rest, which is the same every time.
const seconds = (performance.now() - startedAt) / 1000;
const seedsCount = failure === null ? count : failure.seed - from + 1;
process.stderr.write(`${seconds.toFixed(1)} s, ${Math.round((seedsCount / seconds) * 60)} seeds a minute\n`);
if (failure !== null) {
  const { seed, violation } = failure;
  say(`seed ${seed}: ${violation}`);
  say(`found after ${seedsCount} seeds; again: npm run sim -- --seeds 1 --from ${seed} --trace`);
  if (!values['no-shrink']) for (const line of await shrink(drawPlan(seed), mutation)) say(line);
  process.exit(1);
}
say(
  `${count} seeds from ${from}: no violation; ${totals.events} events, ${totals.writes} writes, ` +
    `${totals.reads} reads, ${totals.flushes} flushes, ${totals.rebuilds} rebuilds, ${totals.losses} losses`,
);
