/** Where the stripped copy of a TypeScript source lies; plain JavaScript, as the hook runs before any types are stripped. */
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';

export const STRIPPED_DIRECTORY = fileURLToPath(new URL('../build/stripped', import.meta.url));

/**
 * Named by content: a copy can be missing, but never stale.
 * @param {string} source
 */
export function strippedPath(source) {
  return `${STRIPPED_DIRECTORY}/${createHash('sha256').update(source).digest('hex')}.js`;
}

/**
 * The value of NODE_OPTIONS that gives the hook to a process, its threads and its children.
 * @param {string | undefined} options what it is so far
 */
export function withStrippedHook(options) {
  const hook = `--import=${new URL('hook.mjs', import.meta.url).href}`;
  if (options === undefined || options === '') return hook;
  return options.includes(hook) ? options : `${options} ${hook}`;
}
