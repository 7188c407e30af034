/**
 * Directories that are under their names whole or not at all, whatever crashes: a new one is filled beside its name (`.new-…`) and
 * renamed, one that goes is renamed first (`.deleted-…`). What a crash leaves of either goes when the names are read.
 */
import { mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { syncDirectory } from './replace-file.ts';

/** Durable when it returns; on failure nothing of it is left. */
export function makeDirectory(root: string, name: string, fill: (partial: string) => void): void {
  const partial = emptyPartial(root, name);
  try {
    fill(partial);
    settle(root, name);
  } catch (error) {
    removeAll(partial);
    throw error;
  }
}

/** The same, where filling it takes a while. */
export async function makeDirectoryAsync(
  root: string,
  name: string,
  fill: (partial: string) => Promise<void>,
): Promise<void> {
  const partial = emptyPartial(root, name);
  try {
    await fill(partial);
    settle(root, name);
  } catch (error) {
    removeAll(partial);
    throw error;
  }
}

/** Durably gone when it returns; what it returns gives the space free, once nobody has files of it open. */
export function takeDirectory(root: string, name: string): () => void {
  const deleted = join(root, `.deleted-${name}`);
  removeAll(deleted);
  renameSync(join(root, name), deleted);
  syncDirectory(root);
  return () => removeAll(deleted);
}

/** The names that are there, after what a crash has left is removed. */
export function directoriesIn(root: string): string[] {
  const names = readdirSync(root);
  for (const name of names) if (name.startsWith('.')) removeAll(join(root, name));
  return names.filter((name) => !name.startsWith('.'));
}

function emptyPartial(root: string, name: string): string {
  const partial = partialOf(root, name);
  removeAll(partial);
  mkdirSync(partial, { mode: 0o700 });
  return partial;
}

function settle(root: string, name: string): void {
  renameSync(partialOf(root, name), join(root, name));
  syncDirectory(root);
}

function partialOf(root: string, name: string): string {
  return join(root, `.new-${name}`);
}

function removeAll(path: string): void {
  rmSync(path, { recursive: true, force: true });
}
