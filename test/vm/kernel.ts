/**
 * The VM's kernel: Debian's newest backports cloud kernel, downloaded and unpacked into a cache, never installed.
 * Where the mirror is and how it is reached (proxy, credentials) comes from the machine's own apt configuration;
 * apt checks the signatures with Debian's keyring. The machine's own package lists stay as they are.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { findProgram, runProgram } from './programs.ts';

/** The release whose backports have ublk with registered buffers on sockets (7.2 and later). */
const SUITE = 'trixie-backports';
const META_PACKAGE = 'linux-image-cloud-amd64';
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

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
  const work = await fs.mkdtemp(path.join(cache, 'fetch-'));
  try {
    const config = await writeAptConfig(work);
    const apt = (program: string, ...args: string[]) =>
      runProgram(program, ['-q', '-c', config, ...args], { cwd: work });
    onProgress(`Asking the Debian mirror for the newest ${SUITE} cloud kernel`);
    await apt('apt-get', 'update', '--error-on=any').catch((error: unknown) => {
      if (!/NO_PUBKEY|not signed/.test(String(error))) throw error;
      const message = `This machine does not know the keys of ${SUITE}: update the package debian-archive-keyring.`;
      throw new BlockwireError('BW_UNSUPPORTED_HOST', message, { cause: error });
    });
    const release = newestRelease(await apt('apt-cache', 'show', '--no-all-versions', META_PACKAGE));
    const kernel = kernelAt(cache, release);
    if (
      !(await fs.access(kernel.imagePath).then(
        () => true,
        () => false,
      ))
    ) {
      const packages = ['binary', 'modules', 'base'].map((part) => `linux-${part}-${release}`);
      onProgress(`Fetching Linux ${release}`);
      await apt('apt-get', 'download', ...packages);
      await unpack(work, release);
      await fs.rename(path.join(work, 'root'), path.join(cache, `kernel-${release}`));
    }
    await fs.writeFile(path.join(work, 'release'), release);
    await fs.rename(path.join(work, 'release'), path.join(cache, 'release'));
    return kernel;
  } finally {
    await fs.rm(work, { recursive: true, force: true });
  }
}

/** The kernel release that the meta package depends on. */
function newestRelease(record: string): string {
  const release = /^Depends:.*\blinux-image-(\d[\w.+-]*-cloud-amd64)\b/m.exec(record)?.[1];
  if (!release) {
    throw new BlockwireError('BW_UNSUPPORTED_HOST', `The mirror's ${SUITE} has no usable ${META_PACKAGE}.`);
  }
  return release;
}

/**
 * An apt configuration with state of its own. Given with -c it is read after the machine's, so that its
 * #clear takes the machine's hooks away: some of them empty the machine's package cache after an update.
 */
async function writeAptConfig(work: string): Promise<string> {
  const mirror = await machineMirror();
  for (const directory of ['state/lists/partial', 'cache/archives/partial', 'sources.d']) {
    await fs.mkdir(path.join(work, directory), { recursive: true });
  }
  await fs.writeFile(path.join(work, 'status'), '');
  await fs.writeFile(
    path.join(work, 'sources.list'),
    `deb [arch=amd64 signed-by=${KEYRING}] ${mirror} ${SUITE} main\n`,
  );
  const config = path.join(work, 'apt.conf');
  const settings: Record<string, string> = {
    'Dir::State': path.join(work, 'state'),
    'Dir::State::lists': path.join(work, 'state/lists'),
    'Dir::State::status': path.join(work, 'status'),
    'Dir::Cache': path.join(work, 'cache'),
    'Dir::Etc::sourcelist': path.join(work, 'sources.list'),
    'Dir::Etc::sourceparts': path.join(work, 'sources.d'),
    'APT::Architecture': 'amd64',
    // The download user of apt may not enter this user's cache.
    'APT::Sandbox::User': 'root',
  };
  const hooks = ['APT::Update::Pre-Invoke', 'APT::Update::Post-Invoke', 'APT::Update::Post-Invoke-Success'];
  await fs.writeFile(
    config,
    [
      ...hooks.map((hook) => `#clear ${hook};`),
      ...Object.entries(settings).map(([name, value]) => `${name} "${value}";`),
      '',
    ].join('\n'),
  );
  return config;
}

/** The URI that this machine's apt has for its own Debian release: what its sources say, in either format. */
async function machineMirror(): Promise<string> {
  const [listed, release] = await Promise.all([
    runProgram('apt-get', ['update', '--print-uris']),
    fs.readFile('/etc/os-release', 'utf8'),
  ]);
  const codename = /^VERSION_CODENAME=(\w+)$/m.exec(release)?.[1] ?? '';
  const isDebian = /^ID=debian$/m.test(release);
  for (const [, mirror, suite] of listed.matchAll(/^'(.+)\/dists\/([^/']+)\/InRelease'/gm)) {
    if (isDebian && mirror && (suite === codename || suite === 'stable' || suite === 'oldstable'))
      return mirror;
  }
  throw new BlockwireError(
    'BW_UNSUPPORTED_HOST',
    'The VM gets its kernel through the Debian mirror of this machine, and apt has none configured for its release.',
  );
}

/** Unpacks the packages and prepares the modules, so that the emulated machine need not decompress anything. */
async function unpack(work: string, release: string): Promise<void> {
  const root = path.join(work, 'root');
  const packages = (await fs.readdir(work)).filter((name) => name.endsWith('.deb'));
  for (const name of packages) await runProgram('dpkg-deb', ['-x', path.join(work, name), root]);
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

/**
 * Takes an exclusive lock between processes and returns what releases it. The kernel releases it too when this
 * process ends: flock's holder reads a pipe from here.
 */
async function lock(file: string): Promise<() => Promise<void>> {
  const holder: ChildProcess = spawn(findProgram('flock'), [file, '-c', 'echo locked; exec cat'], {
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  const exited = once(holder, 'exit');
  await Promise.race([once(holder.stdout!, 'data'), exited]);
  if (holder.exitCode !== null) throw new BlockwireError('BW_UNSUPPORTED_HOST', `Cannot lock ${file}.`);
  return async () => {
    holder.stdin!.end();
    await exited;
  };
}
