/**
 * Runs the tests in stages and ends with one line: `N passed, N failed, N skipped`.
 *
 *   node test/run.ts                  everything
 *   node test/run.ts unit integration vm    some stages
 *
 * unit: beside the code, no root, no network · integration: real processes, real clients · vm: real ublk in test/vm
 */
import { spawnSync } from 'node:child_process';
import { globSync } from 'node:fs';
import { join } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { fillStripped } from '@blockwire/shared/stripped/fill.ts';
import { withStrippedHook } from '@blockwire/shared/stripped/path.mjs';

const ROOT = join(import.meta.dirname, '..');
const IGNORED = ['**/node_modules/**', '**/build/**'];
const TEST_MS_MAX = 15 * 60_000;

interface Stage {
  readonly name: string;
  readonly pattern: RegExp;
  /** Test files at a time. Stages that measure or boot machines run one. */
  readonly concurrency: number;
}

const STAGES: readonly Stage[] = [
  { name: 'unit', pattern: /^(?!.*\.(integration|vm)\.test\.ts$).*\.test\.ts$/, concurrency: 2 },
  { name: 'integration', pattern: /\.integration\.test\.ts$/, concurrency: 1 },
  { name: 'vm', pattern: /\.vm\.test\.ts$/, concurrency: 1 },
];

const totals = { passed: 0, failed: 0, skipped: 0 };
const failures: string[] = [];

/** A command that counts as one test. */
function runCheck(name: string, command: string, parameters: readonly string[]): void {
  const { status } = spawnSync(command, parameters, { cwd: ROOT, stdio: 'inherit' });
  if (status === 0) {
    totals.passed++;
  } else {
    totals.failed++;
    failures.push(name);
  }
}

async function runStage(stage: Stage): Promise<void> {
  const files = globSync('**/*.test.ts', { cwd: ROOT, exclude: IGNORED })
    .filter((file) => stage.pattern.test(file))
    .sort()
    .map((file) => join(ROOT, file));
  process.stdout.write(`\n== ${stage.name}: ${files.length} files\n`);
  const events = run({ files, concurrency: stage.concurrency, timeout: TEST_MS_MAX });
  events.on('test:pass', (test) => {
    if (test.details.type === 'suite') return;
    if (test.skip !== undefined || test.todo !== undefined) {
      totals.skipped++;
      process.stdout.write(`SKIPPED: ${test.name}: ${String(test.skip ?? test.todo)}\n`);
    } else {
      totals.passed++;
    }
  });
  events.on('test:fail', (test) => {
    if (test.details.type === 'suite') return;
    totals.failed++;
    failures.push(`${test.file ?? stage.name}: ${test.name}`);
  });
  const report = events.compose(new spec());
  report.pipe(process.stdout, { end: false });
  await new Promise((resolve) => report.once('end', resolve));
}

const asked = process.argv.slice(2);
const unknown = asked.filter((name) => name !== 'check' && !STAGES.some((stage) => stage.name === name));
if (unknown.length > 0) {
  process.stderr.write(`no such stage: ${unknown.join(', ')}; there are check, unit, integration, vm\n`);
  process.exit(2);
}
// Every test file is a process, and starts others.
fillStripped();
process.env.NODE_OPTIONS = withStrippedHook(process.env.NODE_OPTIONS);
if (asked.length === 0 || asked.includes('check')) {
  process.stdout.write('== check\n');
  runCheck('format and lint (biome)', 'npx', ['biome', 'check', '.']);
  runCheck('types (tsc)', 'npx', ['tsc']);
}
for (const stage of STAGES) {
  if (asked.length === 0 || asked.includes(stage.name)) await runStage(stage);
}
for (const failure of failures) process.stdout.write(`FAILED: ${failure}\n`);
process.stdout.write(`\n${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped\n`);
process.exitCode = totals.failed === 0 && totals.passed > 0 ? 0 : 1;
