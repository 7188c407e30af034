import assert from 'node:assert/strict';
import { test } from 'node:test';
import { job } from './fio.ts';
import { type ReportLayout, renderSummary, summarize } from './report.ts';
import { brokenCompetitor, type Metrics, runRounds } from './rounds.ts';

const layout: ReportLayout = {
  baseline: 'slow',
  ratios: [{ metric: 'iops', title: 'IOPS ratio' }],
  values: [{ metric: 'iops', title: 'IOPS' }],
};

const metrics = (iops: number): Metrics => ({ iops, bytesPerSecond: iops, p50Us: 1, p99Us: 2 });

function run(names: string[], iops: (name: string) => number) {
  const order: string[] = [];
  const samples = runRounds({
    jobs: [job('read', 4, 1)],
    competitors: [
      ...names.map((name) => ({
        name,
        measure: () => {
          order.push(name);
          return Promise.resolve(metrics(iops(name)));
        },
      })),
      brokenCompetitor('broken', new Error('no such device')),
    ],
    rounds: 3,
    patienceMs: 0,
    onSample: () => {},
    signal: new AbortController().signal,
  });
  return samples.then((list) => ({ list, order }));
}

test('competitors take turns, and each round begins with another one', async () => {
  const { order } = await run(['fast', 'slow'], () => 1);
  assert.deepEqual(order, ['fast', 'slow', 'slow', 'fast', 'fast', 'slow']);
});

test('the summary has medians and ratios to the baseline', async () => {
  const { list } = await run(['fast', 'slow'], (name) => (name === 'fast' ? 300 : 100));
  const [fast, slow] = summarize(list, layout);
  assert.equal(fast?.medians.iops, 300);
  assert.deepEqual(fast?.ratios.iops, { value: 3, resolved: true, rounds: 3 });
  assert.equal(slow?.ratios.iops, null);
});

test('a competitor that never worked is in the table, with its reason', async () => {
  const { list } = await run(['slow'], () => 100);
  const text = renderSummary(summarize(list, layout), layout);
  assert.match(text, /broken\s+failed\s+failed/);
  assert.match(text, /FAILED: 4k read qd1, broken: no such device/);
});

test('gaps under a fifth are named unresolved', async () => {
  const { list } = await run(['fast', 'slow'], (name) => (name === 'fast' ? 110 : 100));
  assert.match(renderSummary(summarize(list, layout), layout), /unresolved 1\.10x/);
});
