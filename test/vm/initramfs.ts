/** The VM's initramfs: busybox, the kernel modules needed at boot, and the scripts in guest/. */
import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { stripTypes } from '@blockwire/shared/stripped/fill.ts';
import { withStrippedHook } from '@blockwire/shared/stripped/path.mjs';
import { type CpioEntry, cpioArchive } from './cpio.ts';
import type { Kernel } from './kernel.ts';
import { findProgram } from './programs.ts';

/** Loaded at boot, with parameters; modprobe inside finds all others. */
export const BOOT_MODULES: Readonly<Record<string, string>> = {
  overlay: '',
  configfs: '',
  virtio_net: '',
  ublk_drv: '',
  nbd: 'nbds_max=16',
};

const APPLETS = ['sh', 'mount', 'mkdir', 'ln', 'cp', 'insmod', 'ip', 'hostname', 'switch_root', 'poweroff'];

export interface InitramfsOptions {
  readonly kernel: Kernel;
  readonly repositoryPath: string;
  /** The guest's address with its prefix length. */
  readonly address: string;
  readonly gateway: string;
}

/** Builds the archive in memory (about 10 MB). */
export async function buildInitramfs(options: InitramfsOptions): Promise<Buffer> {
  const { kernel } = options;
  const dependencies = parseModulesDep(
    await fs.readFile(path.join(kernel.modulesPath, 'modules.dep'), 'utf8'),
  );
  const builtIn = await fs.readFile(path.join(kernel.modulesPath, 'modules.builtin'), 'utf8');
  const isBuiltIn = (name: string) => new RegExp(`/${name.replaceAll('_', '[-_]')}\\.ko$`, 'm').test(builtIn);
  const wanted = Object.keys(BOOT_MODULES).filter((name) => !isBuiltIn(name));
  const files = loadOrder(dependencies, wanted);

  const entries: CpioEntry[] = ['bin', 'dev', 'proc', 'sys', 'modules', 'agent'].map((directory) => ({
    path: directory,
    kind: 'directory',
  }));
  const addFile = (name: string, content: Uint8Array | string, executable = false) =>
    entries.push({ path: name, kind: 'file', content: Buffer.from(content), executable });

  addFile('bin/busybox', await fs.readFile(findProgram('busybox')), true);
  for (const applet of APPLETS) entries.push({ path: `bin/${applet}`, kind: 'symlink', target: 'busybox' });
  const order: string[] = [];
  for (const file of files) {
    const base = path.basename(file);
    addFile(`modules/${base}`, await fs.readFile(path.join(kernel.modulesPath, file)));
    order.push(`${base} ${BOOT_MODULES[moduleName(file)] ?? ''}`.trim());
  }
  addFile('modules/order', `${order.join('\n')}\n`);
  addFile('config', shellConfig(options));
  const guest = path.join(import.meta.dirname, 'guest');
  addFile('init', await fs.readFile(path.join(guest, 'init')), true);
  addFile('agent/pid1', await fs.readFile(path.join(guest, 'pid1')));
  for (const name of ['agent', 'frames']) {
    // Stripped here: doing it inside would cost the emulated machine seconds at each boot.
    const source = stripTypes(await fs.readFile(path.join(guest, `${name}.ts`), 'utf8'));
    addFile(`agent/${name}.mjs`, source.replace(/(from '\.\/\w+)\.ts'/g, "$1.mjs'"));
  }
  return cpioArchive(entries);
}

function shellConfig({ kernel, repositoryPath, address, gateway }: InitramfsOptions): string {
  const hidden = (file: string) => /^\/(tmp|run)\//.test(file);
  const variables: Record<string, string> = {
    RELEASE: kernel.release,
    MODULES_DIR: kernel.modulesPath,
    REPOSITORY: repositoryPath,
    NODE: process.execPath,
    NODE_OPTIONS: withStrippedHook(''),
    ADDRESS: address,
    GATEWAY: gateway,
    KEEP: [repositoryPath, kernel.modulesPath, path.dirname(process.execPath)].filter(hidden).join(' '),
  };
  return Object.entries(variables)
    .map(([name, value]) => `${name}='${value.replaceAll("'", `'\\''`)}'\n`)
    .join('');
}

/** modules.dep: `path: path path...`, the dependencies complete and, read backwards, in the order to load. */
export function parseModulesDep(text: string): Map<string, { file: string; needs: string[] }> {
  const modules = new Map<string, { file: string; needs: string[] }>();
  for (const line of text.split('\n')) {
    const [file, needs] = line.split(':');
    if (file && needs !== undefined) {
      modules.set(moduleName(file), { file, needs: needs.trim().split(/\s+/).filter(Boolean) });
    }
  }
  return modules;
}

/** The files of the wanted modules and all they need, each after what it needs. Throws Error on an unknown one. */
export function loadOrder(
  modules: ReadonlyMap<string, { file: string; needs: string[] }>,
  wanted: readonly string[],
): string[] {
  const ordered = new Set<string>();
  for (const name of wanted) {
    const entry = modules.get(name);
    if (!entry) throw new Error(`The kernel has no module ${name}`);
    for (const file of entry.needs.toReversed()) ordered.add(file);
    ordered.add(entry.file);
  }
  return [...ordered];
}

/** A module's name, with which parameters are looked up: dashes in the file's name become underscores. */
function moduleName(file: string): string {
  return path
    .basename(file)
    .replace(/\.ko.*$/, '')
    .replaceAll('-', '_');
}
