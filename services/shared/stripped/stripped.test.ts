import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { fillStripped, stripTypes } from './fill.ts';
import { withStrippedHook } from './path.mjs';

const MODULE = new URL('../version.ts', import.meta.url).href;
/** Imports a source in the main thread and in a worker. */
const PROGRAM = `
  const { Worker } = await import('node:worker_threads');
  await import('${MODULE}');
  const worker = new Worker("import('${MODULE}')", { eval: true });
  worker.on('error', (error) => { throw error; });
`;

function run(nodeOptions: string): Promise<unknown> {
  // With Node's own stripping switched off, only the copies are left.
  const args = ['--no-strip-types', '--input-type=module', '--eval', PROGRAM];
  return promisify(execFile)(process.execPath, args, {
    env: { ...process.env, NODE_OPTIONS: nodeOptions },
  });
}

test('the main thread and its workers load the stripped copies', async () => {
  fillStripped();
  await run(withStrippedHook(''));
  await assert.rejects(run(''), /ERR_UNKNOWN_FILE_EXTENSION/);
});

test('the hook is given once, beside other options', () => {
  const once = withStrippedHook('--no-warnings');
  assert.match(once, /^--no-warnings --import=file:\/\/\/.*\/hook\.mjs$/);
  assert.equal(withStrippedHook(once), once);
});

test('stripping keeps lines and columns', () => {
  assert.equal(stripTypes('const a: number = 1;\nb;'), 'const a         = 1;\nb;');
});
