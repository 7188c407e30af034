#!/usr/bin/env node
/**
 * The `blockwire` command's first step, on any Node from 18 on: the sources need Node 24, so an older one hands
 * over to the Node that the project brings along (npm package `node`) and from then on only passes signals and
 * the exit code through.
 */
import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { constants as osConstants } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { withStrippedHook } from '../shared/stripped/path.mjs';

const NODE_MAJOR_MIN = 24;
/** @type {readonly NodeJS.Signals[]} */
const PASSED_SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'];

const here = dirname(fileURLToPath(import.meta.url));
const mainPath = join(here, 'main.ts');

/** The nearest node_modules/.bin/node from here upwards, or null. */
function findProjectNode() {
  for (let folder = here; ; folder = dirname(folder)) {
    const candidate = join(folder, 'node_modules', '.bin', 'node');
    try {
      accessSync(candidate, constants.X_OK);
      return candidate;
    } catch {
      if (folder === dirname(folder)) return null;
    }
  }
}

/** @param {string} message */
function fail(message) {
  process.stderr.write(`blockwire: BW_UNSUPPORTED_HOST: ${message}\n`);
  process.exit(1);
}

/** @param {string} nodePath */
function handOver(nodePath) {
  // main.ts notices the loss of this process by its parent's id, which a SIGKILL here could not tell it.
  const env = { ...process.env, BLOCKWIRE_LAUNCHER_PID: String(process.pid) };
  const child = spawn(nodePath, [mainPath, ...process.argv.slice(2)], { stdio: 'inherit', env });
  child.on('error', (error) => fail(`cannot start ${nodePath}: ${error.message}`));
  for (const signal of PASSED_SIGNALS) process.on(signal, () => child.kill(signal));
  child.on('exit', (code, signal) => {
    if (signal === null) process.exit(code ?? 1);
    for (const passed of PASSED_SIGNALS) process.removeAllListeners(passed);
    process.exitCode = 128 + (osConstants.signals[signal] ?? 0);
    process.kill(process.pid, signal ?? undefined);
  });
}

// For the processes that this one starts, and for itself.
process.env.NODE_OPTIONS = withStrippedHook(process.env.NODE_OPTIONS);

if (Number(process.versions.node.split('.')[0]) >= NODE_MAJOR_MIN) {
  await import('../shared/stripped/hook.mjs');
  const { main } = await import('./main.ts');
  process.exitCode = await main(process.argv.slice(2));
} else {
  const nodePath = findProjectNode();
  if (nodePath === null)
    fail(
      `Node ${process.versions.node} is too old (${NODE_MAJOR_MIN} is needed); run "npm install" in the project`,
    );
  else handOver(nodePath);
}
