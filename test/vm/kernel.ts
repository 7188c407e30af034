/** The VM's kernel: Debian's newest backports cloud kernel, unpacked into a cache. */
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { exists, lock, withSuite } from './packages.ts';
import { runProgram } from './programs.ts';

/** The release whose backports have ublk with registered buffers on sockets (7.2 and later). */
const SUITE = 'trixie-backports';
const META_PACKAGE = 'linux-image-cloud-amd64';

export interface Kernel {
  /** As `uname -r` says. */
  readonly release: string;
  /** The bootable image. */
  readonly imagePath: string;
  /** What /lib/modules/<release> is inside; modules are uncompressed, modules.dep is there. */
  readonly modulesPath: string;
}

export interface KernelOptions {
  /** Ask the mirror again, though the cache has a kernel. */
  readonly refresh?: boolean;
  readonly onProgress?: (message: string) => void;
}

/** Where kernels and what was learnt about the machine are kept. */
export function cacheDirectory(env: NodeJS.ProcessEnv = process.env): string {
  const base = env.BLOCKWIRE_CACHE;
  return base ? path.resolve(base, 'vm') : path.join(os.homedir(), '.cache', 'blockwire', 'vm');
}

/**
 * The cached kernel; fetches one when there is none. Callers may run in parallel, in several processes.
 * Throws BW_UNSUPPORTED_HOST when the machine is not Debian, or its mirror or a program is missing.
 */
export async function ensureKernel(cache: string, options: KernelOptions = {}): Promise<Kernel> {
  const cached = options.refresh ? null : await cachedKernel(cache);
  if (cached) return cached;
  await fs.mkdir(cache, { recursive: true });
  const unlock = await lock(path.join(cache, 'lock'));
  try {
    const meanwhile = options.refresh ? null : await cachedKernel(cache);
    return meanwhile ?? (await fetchKernel(cache, options.onProgress ?? (() => {})));
  } finally {
    await unlock();
  }
}

function kernelAt(cache: string, release: string): Kernel {
  const modulesPath = path.join(cache, `kernel-${release}`, 'usr/lib/modules', release);
  return { release, imagePath: path.join(modulesPath, 'vmlinuz'), modulesPath };
}

/** The file `release` is written last, by rename: what it names is whole. */
async function cachedKernel(cache: string): Promise<Kernel | null> {
  const release = await fs.readFile(path.join(cache, 'release'), 'utf8').catch(() => '');
  if (!/^[\w.+-]+$/.test(release)) return null;
  const kernel = kernelAt(cache, release);
  return fs.access(kernel.imagePath).then(
    () => kernel,
    () => null,
  );
}

async function fetchKernel(cache: string, onProgress: (message: string) => void): Promise<Kernel> {
  onProgress(`Asking the Debian mirror for the newest ${SUITE} cloud kernel`);
  let release = '';
  await withSuite(cache, SUITE, async (suite) => {
    release = newestRelease(await suite.show(META_PACKAGE));
    const directory = path.join(cache, `kernel-${release}`);
    if (await exists(directory)) return;
    onProgress(`Fetching Linux ${release}`);
    const draft = `${directory}.draft`;
    await fs.rm(draft, { recursive: true, force: true });
    await suite.unpack(
      ['binary', 'modules', 'base'].map((part) => `linux-${part}-${release}`),
      draft,
    );
    await prepareModules(draft, release);
    await fs.rename(draft, directory);
  });
  const named = path.join(cache, 'release');
  await fs.writeFile(`${named}.draft`, release);
  await fs.rename(`${named}.draft`, named);
  return kernelAt(cache, release);
}

/** The kernel release that the meta package depends on. */
function newestRelease(record: string): string {
  const release = /^Depends:.*\blinux-image-(\d[\w.+-]*-cloud-amd64)\b/m.exec(record)?.[1];
  if (!release) {
    throw new BlockwireError('BW_UNSUPPORTED_HOST', `The mirror's ${SUITE} has no usable ${META_PACKAGE}.`);
  }
  return release;
}

/** So that the emulated machine need not decompress anything. */
async function prepareModules(root: string, release: string): Promise<void> {
  const modules = path.join(root, 'usr/lib/modules', release);
  const compressed = (await fs.readdir(modules, { recursive: true })).filter((name) =>
    name.endsWith('.ko.xz'),
  );
  for (let i = 0; i < compressed.length; i += 200) {
    await runProgram('xz', ['-d', '-T0', ...compressed.slice(i, i + 200)], { cwd: modules });
  }
  await fs.symlink('usr/lib', path.join(root, 'lib'));
  await runProgram('depmod', ['-b', root, release]);
}
