/**
 * Loads TypeScript from its stripped copy, where `npm run build` made one: `node --import .../hook.mjs main.ts`.
 *
 * Node strips types with a WebAssembly program, anew in every process and thread. That is half of the time in which a process
 * starts; and V8 crashes now and then when two threads run it at once (seen in StartOfJitAllocationAt under
 * Runtime_WasmTriggerTierUp: one start in forty in the VM; compare nodejs/node#64500).
 */
import { readFileSync } from 'node:fs';
import * as module from 'node:module';
import { strippedPath } from './path.mjs';

// A child process may be an older Node, which has no hooks and runs no TypeScript either.
module.registerHooks?.({
  load(url, context, nextLoad) {
    if (!url.startsWith('file:') || !url.endsWith('.ts')) return nextLoad(url, context);
    try {
      const source = readFileSync(strippedPath(readFileSync(new URL(url), 'utf8')), 'utf8');
      return { format: 'module', source, shortCircuit: true };
    } catch {
      return nextLoad(url, context);
    }
  },
});
