/** Makes the stripped copies that hook.mjs loads. Run by the build and before a VM boots; only what is missing costs time. */
import { globSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { basename, join } from 'node:path';
import { STRIPPED_DIRECTORY, strippedPath } from './path.mjs';

const ROOT = join(import.meta.dirname, '../../..');

/** Source without its types; lines and columns stay where they are. */
export function stripTypes(source: string): string {
  // Node warns that this is experimental; who builds cannot act on that.
  const { emitWarning } = process;
  process.emitWarning = () => {};
  try {
    return stripTypeScriptTypes(source);
  } finally {
    process.emitWarning = emitWarning;
  }
}

/** Strips every source of the project that has no copy yet. With `prune`, also removes copies that no source has. */
export function fillStripped({ prune = false } = {}): void {
  mkdirSync(STRIPPED_DIRECTORY, { recursive: true });
  const present = new Set(readdirSync(STRIPPED_DIRECTORY));
  const wanted = new Set<string>();
  for (const file of globSync('**/*.ts', { cwd: ROOT, exclude: ['**/node_modules', '**/build'] })) {
    const source = readFileSync(join(ROOT, file), 'utf8');
    const target = strippedPath(source);
    const name = basename(target);
    wanted.add(name);
    if (present.has(name)) continue;
    // Renamed when whole: others may be loading meanwhile.
    const draft = `${target}.${process.pid}`;
    writeFileSync(draft, stripTypes(source));
    renameSync(draft, target);
  }
  if (!prune) return;
  for (const name of present) {
    if (name.endsWith('.js') && !wanted.has(name)) rmSync(join(STRIPPED_DIRECTORY, name), { force: true });
  }
}

if (import.meta.main) fillStripped({ prune: true });
