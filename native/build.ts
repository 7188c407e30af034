/**
 * Builds the addon with the machine's C++ compiler and the Node-API headers from npm: no node-gyp, no download.
 * Node-API is stable across Node.js versions, so one build serves every one of them.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, renameSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const require = createRequire(import.meta.url);
const here = import.meta.dirname;
const sources = readdirSync(join(here, 'src')).filter((name) => name.endsWith('.cc'));
const output = join(here, 'build', 'blockwire.node');
const partial = `${output}.${process.pid}`;

mkdirSync(dirname(output), { recursive: true });
const compiler = process.env.CXX ?? 'g++';
const result = spawnSync(
  compiler,
  [
    ...['-std=c++17', '-O2', '-g', '-Wall', '-Wextra', '-Werror', '-fPIC', '-shared', '-pthread'],
    ...['-DNAPI_VERSION=9', '-DNODE_ADDON_API_CPP_EXCEPTIONS', '-DBUILDING_NODE_EXTENSION'],
    ...['-isystem', join(dirname(require.resolve('node-api-headers/package.json')), 'include')],
    ...['-isystem', dirname(require.resolve('node-addon-api/package.json'))],
    ...['-o', partial],
    ...sources.map((name) => join(here, 'src', name)),
  ],
  { stdio: 'inherit' },
);
if (result.error) process.stderr.write(`${compiler}: ${result.error.message}. Install g++ (package g++).\n`);
if (result.status !== 0) process.exit(1);
// In one step, so that a process that loads the addon meanwhile sees the old one or the new one.
renameSync(partial, output);
