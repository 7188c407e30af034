/** One qemu process: its arguments, and which accelerator works on this machine. */
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import type { Kernel } from './kernel.ts';

export type Accelerator = 'kvm' | 'tcg';

/** Emulated boots may die of races that real processors do not have. */
const BOOTS_MAX = 4;

export interface QemuOptions {
  readonly firmwareArgs: readonly string[];
  readonly accelerator: Accelerator;
  readonly kernel: Kernel;
  readonly initramfsPath: string;
  readonly memoryMiB: number;
  readonly cpus: number;
  readonly networkArgs: readonly string[];
  readonly consolePath: string;
  readonly agentSocket: string;
  readonly rootSocket: string;
  readonly shareSocket: string;
}

const COMMAND_LINE = [
  'console=ttyS0',
  'loglevel=5',
  // A boot that dies must end qemu at once; guest/pid1 takes oops=panic back when boot is over.
  'panic=-1',
  'oops=panic',
  'mitigations=off',
  'nokaslr',
  'audit=0',
  'lsm=capability',
  'tsc=reliable',
  'no_timer_check',
  'rcupdate.rcu_expedited=1',
  // guest/init starts the other processors: while the kernel patches its own text, emulated ones trip over it.
  'maxcpus=1',
].join(' ');

/** Emulated `rep movsb` goes byte by byte and would flatter zero copy: erms and fsrm off. */
const ACCELERATION: Record<Accelerator, readonly string[]> = {
  kvm: ['-accel', 'kvm', '-cpu', 'host'],
  tcg: ['-accel', 'tcg,thread=multi', '-cpu', 'max,-erms,-fsrm'],
};

export function qemuArgs(options: QemuOptions): string[] {
  const socket = (id: string, file: string) => ['-chardev', `socket,id=${id},path=${file}`];
  const fileSystem = (tag: string, file: string) => [
    ...socket(tag, file),
    '-device',
    `vhost-user-fs-pci,chardev=${tag},tag=${tag}`,
  ];
  return [
    options.firmwareArgs,
    ['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ['-machine', 'q35,memory-backend=memory', ...ACCELERATION[options.accelerator]],
    ['-smp', `${options.cpus}`, '-m', `${options.memoryMiB}M`],
    // virtiofsd maps the guest's memory, hence share=on.
    ['-object', `memory-backend-memfd,id=memory,size=${options.memoryMiB}M,share=on`],
    ['-kernel', options.kernel.imagePath, '-initrd', options.initramfsPath, '-append', COMMAND_LINE],
    ['-serial', `file:${options.consolePath}`],
    ['-device', 'virtio-serial-pci', ...socket('agent', options.agentSocket)],
    ['-device', 'virtserialport,nr=1,chardev=agent'],
    fileSystem('root', options.rootSocket),
    fileSystem('share', options.shareSocket),
    options.networkArgs,
  ].flat();
}

/** Remembers for the cache's lifetime, per processor and host kernel, whether /dev/kvm not only exists but works. */
export class AcceleratorMemory {
  readonly #file: string;

  constructor(cache: string) {
    const machine = `${os.release()} ${os.cpus()[0]?.model ?? ''}`.replaceAll(/[^\w.-]+/g, '_');
    this.#file = path.join(cache, `accelerator-${machine}`);
  }

  /** What to boot with, in order, until one boot succeeds. */
  async attempts(): Promise<Accelerator[]> {
    const known = (await fs.readFile(this.#file, 'utf8').catch(() => '')).trim();
    const exists = await fs.access('/dev/kvm', fs.constants.R_OK | fs.constants.W_OK).then(
      () => true,
      () => false,
    );
    const again = (accelerator: Accelerator) => new Array<Accelerator>(BOOTS_MAX).fill(accelerator);
    if (known === 'tcg' || !exists) return again('tcg');
    return known === 'kvm' ? again('kvm') : ['kvm', ...again('tcg')];
  }

  async remember(accelerator: Accelerator): Promise<void> {
    const draft = `${this.#file}.${process.pid}`;
    await fs.writeFile(draft, accelerator);
    await fs.rename(draft, this.#file);
  }
}
