/** The qemu that runs the VM: this machine's, or where that is too old, the one of its release's backports, from the cache. */
import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { debianCodename, exists, lock, withSuite } from './packages.ts';
import { findProgram, runProgram } from './programs.ts';

/**
 * Before 8.1 the translator of emulated code does not hold the lock of the page that it reads (accel/tcg/translator.c): when
 * one processor patches the kernel's text, for a static key or a trace point, another may go on with half a patch and die of a
 * breakpoint that is no longer there.
 */
const VERSION_MIN = 8.01;
const PACKAGES = ['qemu-system-x86', 'qemu-system-data', 'seabios'];
const PROGRAM = 'qemu-system-x86_64';

export interface Emulator {
  readonly program: string;
  /** Arguments that say where its firmware is. */
  readonly args: readonly string[];
}

/**
 * Fetches one when the machine's is too old and the cache has none; when that fails it is the machine's after all, with a
 * warning. Callers may run in parallel, in several processes. Throws BW_UNSUPPORTED_HOST when the machine
 * has no qemu, whose package also brings the libraries.
 */
export async function ensureEmulator(
  cache: string,
  onProgress: (message: string) => void,
): Promise<Emulator> {
  const program = findProgram(PROGRAM);
  if (version(await runProgram(PROGRAM, ['--version'])) >= VERSION_MIN) return { program, args: [] };
  const codename = await debianCodename();
  const root = path.join(cache, `qemu-${codename}-backports`);
  await fs.mkdir(cache, { recursive: true });
  const unlock = await lock(path.join(cache, 'lock'));
  try {
    if (!(await exists(root))) await fetchEmulator(cache, `${codename}-backports`, root, onProgress);
  } catch (error) {
    // Also where nobody listens: a test that fails later may fail of it.
    const { message } = toBlockwireError(error);
    process.emitWarning(`No newer qemu; emulated, the VM may die at any time of this one: ${message}`);
    return { program, args: [] };
  } finally {
    await unlock();
  }
  const firmware = ['qemu', 'seabios'].flatMap((name) => ['-L', path.join(root, 'usr/share', name)]);
  return { program: path.join(root, 'usr/bin', PROGRAM), args: firmware };
}

async function fetchEmulator(
  cache: string,
  suiteName: string,
  root: string,
  onProgress: (message: string) => void,
): Promise<void> {
  onProgress(`Fetching qemu from ${suiteName}`);
  const draft = `${root}.draft`;
  await fs.rm(draft, { recursive: true, force: true });
  await withSuite(cache, suiteName, (suite) => suite.unpack(PACKAGES, draft));
  await fs.rename(draft, root);
}

/** Of what `--version` prints, 8.1 as 8.01; 0 when it does not say. */
export function version(printed: string): number {
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(printed) ?? [];
  return Number(major ?? 0) + Number(minor ?? 0) / 100;
}
