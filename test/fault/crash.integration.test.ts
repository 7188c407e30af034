/** Some rounds of the crash harness; README.md tells how to run thousands. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { crashRounds } from './crash.ts';
import { freshSeed } from './random.ts';

const ROUNDS = 16;

test('a node that is killed at random points keeps what it answered and tears no block', async (t) => {
  const seed = Number(process.env.BLOCKWIRE_CRASH_SEED ?? freshSeed());
  t.diagnostic(`seed ${seed}`);
  const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-crash-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const report = await crashRounds({ directory, seed, rounds: ROUNDS, workers: 1 + (seed % 2) });
  assert.equal(report.rounds, ROUNDS);
  assert.ok(report.counts.answered > 100 * ROUNDS, 'the node was under load');
  assert.ok(report.openAtKill > ROUNDS, 'requests were open when it was killed');
});
