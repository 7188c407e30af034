import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PeerWatch, type Verdict } from './peer-watch.ts';

/** Ticks every `stepMs` until `untilMs`; what was said, without repetition. */
function run(
  watch: PeerWatch,
  options: { stepMs?: number; untilMs: number; isIdle?: boolean; progress?: (nowMs: number) => number },
): Verdict[] {
  const { stepMs = 100, untilMs, isIdle = false, progress = () => 0 } = options;
  const said: Verdict[] = [];
  watch.begin(0);
  for (let nowMs = stepMs; nowMs <= untilMs; nowMs += stepMs) {
    const verdict = watch.tick(nowMs, isIdle, progress(nowMs), 0);
    if (verdict !== said.at(-1)) said.push(verdict);
  }
  return said;
}

test('a silent peer is asked, then given up; an idle one never', () => {
  assert.deepEqual(run(new PeerWatch(1500), { untilMs: 1500 }), ['fine', 'ask']);
  assert.deepEqual(run(new PeerWatch(1500), { untilMs: 1600 }), ['fine', 'ask', 'silent']);
  assert.deepEqual(run(new PeerWatch(1500), { untilMs: 100_000, isIdle: true }), ['fine']);
});

test('a peer that moves but answers nothing is given up at last', () => {
  const progress = (nowMs: number): number => Math.floor(nowMs / 1000);
  assert.deepEqual(run(new PeerWatch(1500), { untilMs: 29_900, progress }).at(-1), 'ask');
  assert.deepEqual(run(new PeerWatch(1500), { untilMs: 30_200, progress }).at(-1), 'stuck');
});

test('a thread that did not run has heard no silence', () => {
  assert.deepEqual(run(new PeerWatch(1500), { stepMs: 5000, untilMs: 15_000 }), ['fine']);
});
