/** The quickstart as a person meets it: it works, and it leaves nothing behind, also when it is interrupted. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';

const MAIN = join(import.meta.dirname, 'main.ts');
const RUN_MS_MAX = 13 * 60_000;
/** Node's cache of compiled modules, which any Node program may make. */
const ALLOWED_LEFT = ['node-compile-cache'];

describe('quickstart', () => {
  let temporary = '';
  beforeEach(() => {
    // All files of a run are below it, and all processes have it in their environment.
    temporary = mkdtempSync(join(tmpdir(), 'bwq-'));
  });
  afterEach(() => rmSync(temporary, { recursive: true }));

  function start(): { child: ChildProcess; output: () => string } {
    const child = spawn(process.execPath, [MAIN], {
      env: { ...process.env, TMPDIR: temporary },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let text = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += String(chunk)));
    return { child, output: () => text };
  }

  function assertNothingLeft(): void {
    assert.deepEqual(
      readdirSync(temporary).filter((name) => !ALLOWED_LEFT.includes(name)),
      [],
    );
    assert.deepEqual(processesWith(`TMPDIR=${temporary}`), []);
  }

  it('ends well, names the mode, and leaves nothing', { timeout: RUN_MS_MAX }, async () => {
    const { child, output } = start();
    const [exitCode] = (await once(child, 'close')) as [number | null];
    assert.equal(exitCode, 0, output());
    const lastLines = output().trimEnd().split('\n').slice(-8).join('\n');
    assert.match(lastLines, /^mode +fused$/m);
    assert.match(lastLines, /^degraded +true: .*node-2 stale/m);
    assert.match(lastLines, /^verdict +PASSED/m);
    assertNothingLeft();
  });

  it('interrupted in the middle of the copy, it leaves nothing', { timeout: RUN_MS_MAX }, async () => {
    const { child, output } = start();
    while (!/copied: /.test(output()) && child.exitCode === null) await once(child.stdout!, 'data');
    child.kill('SIGINT');
    const [exitCode] = (await once(child, 'close')) as [number | null];
    assert.equal(exitCode, 130, output());
    assertNothingLeft();
  });
});

/** Ids of the processes that have this in their environment. */
function processesWith(variable: string): string[] {
  return readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0').includes(variable);
    } catch {
      // It has ended.
      return false;
    }
  });
}
