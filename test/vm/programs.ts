/** Running the host's programs: with their output in the error, and the package to install when one is missing. */
import { execFile } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import * as path from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';

/** Debian's package for each program that the VM needs. */
const PACKAGES: Record<string, string> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  virtiofsd: 'qemu-system-x86',
  busybox: 'busybox-static',
  depmod: 'kmod',
  xz: 'xz-utils',
  ip: 'iproute2',
  setpriv: 'util-linux',
  flock: 'util-linux',
  'apt-get': 'apt',
  'dpkg-deb': 'dpkg',
};

/** Debian 12 puts virtiofsd in the first, later releases in the second; neither is on the PATH. */
const SEARCHED = [
  ...(process.env.PATH ?? '').split(':'),
  '/usr/sbin',
  '/sbin',
  '/usr/lib/qemu',
  '/usr/libexec',
];

/** The program's full path; a full path is believed. Throws BW_UNSUPPORTED_HOST naming the package that has it. */
export function findProgram(name: string): string {
  if (path.isAbsolute(name)) return name;
  for (const directory of SEARCHED) {
    const candidate = path.join(directory, name);
    try {
      if (directory === '') continue;
      accessSync(candidate, constants.X_OK);
      return candidate;
    } catch {
      // Look in the next directory.
    }
  }
  throw new BlockwireError(
    'BW_UNSUPPORTED_HOST',
    `The VM needs the program ${name}: install the Debian package ${PACKAGES[name] ?? name}.`,
  );
}

export interface ProgramOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
}

/** Runs a program to its end and returns its standard output. Throws BW_UNSUPPORTED_HOST with what it printed. */
export function runProgram(
  name: string,
  args: readonly string[],
  options: ProgramOptions = {},
): Promise<string> {
  const file = findProgram(name);
  return new Promise((resolve, reject) => {
    execFile(file, args, { ...options, maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) => {
      if (!error) return resolve(stdout);
      const said = `${stderr}${stdout}`.trim();
      reject(
        new BlockwireError(
          'BW_UNSUPPORTED_HOST',
          `${name} ${args.join(' ')} failed: ${said || error.message}`,
          {
            cause: error,
          },
        ),
      );
    });
  });
}
