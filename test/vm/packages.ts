/**
 * Debian packages of any suite, downloaded and unpacked into a cache, never installed. Where the mirror is and how it is
 * reached (proxy, credentials) comes from the machine's own apt configuration; apt checks the signatures with Debian's
 * keyring. The machine's own package lists stay as they are.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { findProgram, runProgram } from './programs.ts';

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

/** One suite of the machine's mirror. */
export interface Suite {
  /** The newest version's record, as `apt-cache show` prints it. */
  show(name: string): Promise<string>;
  /** Unpacks the newest versions of these packages over each other. */
  unpack(names: readonly string[], root: string): Promise<void>;
}

/**
 * Reads a suite's lists and hands it to `use`; what it needs meanwhile lies in a directory under `cache`.
 * Throws BW_UNSUPPORTED_HOST when the machine is not Debian, its mirror or a program is missing, or the mirror has no such
 * suite or package.
 */
export async function withSuite(
  cache: string,
  name: string,
  use: (suite: Suite) => Promise<void>,
): Promise<void> {
  const work = await fs.mkdtemp(path.join(cache, 'fetch-'));
  try {
    const config = await writeAptConfig(work, name);
    const apt = (program: string, ...args: string[]) =>
      runProgram(program, ['-q', '-c', config, ...args], { cwd: work });
    await apt('apt-get', 'update', '--error-on=any').catch((error: unknown) => {
      if (!/NO_PUBKEY|not signed/.test(String(error))) throw error;
      const message = `This machine does not know the keys of ${name}: update the package debian-archive-keyring.`;
      throw new BlockwireError('BW_UNSUPPORTED_HOST', message, { cause: error });
    });
    await use({
      show: (packageName) => apt('apt-cache', 'show', '--no-all-versions', packageName),
      unpack: async (names, root) => {
        await apt('apt-get', 'download', ...names);
        const files = (await fs.readdir(work)).filter((file) => file.endsWith('.deb'));
        for (const file of files) await runProgram('dpkg-deb', ['-x', path.join(work, file), root]);
      },
    });
  } finally {
    await fs.rm(work, { recursive: true, force: true });
  }
}

/** This machine's Debian release, such as `bookworm`; empty on other systems. */
export async function debianCodename(): Promise<string> {
  const release = await fs.readFile('/etc/os-release', 'utf8').catch(() => '');
  return /^ID=debian$/m.test(release) ? (/^VERSION_CODENAME=(\w+)$/m.exec(release)?.[1] ?? '') : '';
}

/** Whether there is such a file or directory. */
export function exists(file: string): Promise<boolean> {
  return fs.access(file).then(
    () => true,
    () => false,
  );
}

/**
 * An apt configuration with state of its own. Given with -c it is read after the machine's, so that its
 * #clear takes the machine's hooks away: some of them empty the machine's package cache after an update.
 */
async function writeAptConfig(work: string, suite: string): Promise<string> {
  const mirror = await machineMirror();
  for (const directory of ['state/lists/partial', 'cache/archives/partial', 'sources.d']) {
    await fs.mkdir(path.join(work, directory), { recursive: true });
  }
  await fs.writeFile(path.join(work, 'status'), '');
  await fs.writeFile(
    path.join(work, 'sources.list'),
    `deb [arch=amd64 signed-by=${KEYRING}] ${mirror} ${suite} main\n`,
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
  const [listed, codename] = await Promise.all([
    runProgram('apt-get', ['update', '--print-uris']),
    debianCodename(),
  ]);
  for (const [, mirror, suite] of listed.matchAll(/^'(.+)\/dists\/([^/']+)\/InRelease'/gm)) {
    if (codename && mirror && (suite === codename || suite === 'stable' || suite === 'oldstable'))
      return mirror;
  }
  throw new BlockwireError(
    'BW_UNSUPPORTED_HOST',
    'The VM gets its parts through the Debian mirror of this machine, and apt has none configured for its release.',
  );
}

/**
 * Takes an exclusive lock between processes and returns what releases it. The kernel releases it too when this
 * process ends: flock's holder reads a pipe from here.
 */
export async function lock(file: string): Promise<() => Promise<void>> {
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
