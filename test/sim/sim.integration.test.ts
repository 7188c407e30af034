/** A share of the simulator's seeds: none violates a promise, a replay is one, and a broken protocol is noticed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runBatch, runBatches } from './batches.ts';
import type { MutationName } from './mutations.ts';
import { drawPlan } from './plan.ts';
import { shrink } from './shrink.ts';
import { simulate } from './simulation.ts';

const SEEDS_COUNT = 500;
const MUTANT_SEEDS_MAX = 1000;

test('no seed violates a promise', async () => {
  Error.stackTraceLimit = 0;
  let rebuilds = 0;
  for (let seed = 1; seed <= SEEDS_COUNT; seed++) {
    const outcome = await simulate(drawPlan(seed), { mutation: null, traced: false });
    assert.equal(outcome.violation, null, `seed ${seed}`);
    rebuilds += outcome.rebuilds;
  }
  assert.ok(rebuilds > SEEDS_COUNT / 2, `${rebuilds} rebuilds are too few to mean anything`);
});

test('a seed replays exactly', async () => {
  const outcomes = [];
  for (const traced of [false, true]) {
    outcomes.push(await simulate(drawPlan(42), { mutation: null, traced }));
  }
  const [first, second] = outcomes;
  assert.deepEqual([first!.digest, first!.eventCount], [second!.digest, second!.eventCount]);
});

test('several processes find what one finds', async () => {
  for (const mutation of [null, 'decide-alone'] as const) {
    const batch = { from: 1, count: 120, mutation };
    assert.deepEqual(await runBatches(batch, 2), await runBatch(batch));
  }
});

const MUTANTS: readonly MutationName[] = [
  'skip-intent',
  'clear-without-checkpoint',
  'acknowledge-early',
  'skip-barrier',
  'ignore-checksum',
  'repair-at-old-epoch',
];
for (const mutation of MUTANTS) {
  test(`noticed: ${mutation}`, async () => {
    for (let seed = 1; seed <= MUTANT_SEEDS_MAX; seed++) {
      const plan = drawPlan(seed);
      const { violation } = await simulate(plan, { mutation, traced: false });
      if (violation === null) continue;
      if (mutation === 'skip-intent') {
        const [headline] = await shrink(plan, mutation);
        assert.match(headline!, /smallest plan after \d+ runs: \d+ of \d+ requests/);
      }
      return;
    }
    assert.fail(`${mutation} goes unnoticed for ${MUTANT_SEEDS_MAX} seeds`);
  });
}
