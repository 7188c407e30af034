/**
 * Boots Debian's newest cloud kernel under qemu over this machine's own root and runs commands inside.
 *
 *   const vm = await Vm.boot();  const { exitCode, output } = await vm.run('uname -r');  await vm.close();
 */
import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { fillStripped } from '@blockwire/shared/stripped/fill.ts';
import { AgentClient } from './agent-client.ts';
import { type Emulator, ensureEmulator } from './emulator.ts';
import { HostMachine, isHostWanted } from './host.ts';
import { buildInitramfs } from './initramfs.ts';
import { cacheDirectory, ensureKernel, type Kernel } from './kernel.ts';
import { checkWith, type Machine, runWith } from './machine.ts';
import { type Forwards, type Network, peerNetwork, slirpNetwork, tapNetwork } from './network.ts';
import { Parts, sweep } from './parts.ts';
import { type Accelerator, AcceleratorMemory, qemuArgs } from './qemu.ts';

export interface VmOptions {
  /** Default 4096; three quarters of it hold what is written to the guest's root. */
  readonly memoryMiB?: number | undefined;
  /** Default 2. */
  readonly cpus?: number | undefined;
  /** Default slirp. */
  readonly network?: 'slirp' | 'tap' | undefined;
  /** Instead of `network`: on the network of this other VM, which has a tap; its `hostNetns`. */
  readonly peerOf?: string | undefined;
  /** Ports of the host's loopback that lead to ports inside; slirp only. */
  readonly forwards?: Forwards | undefined;
  /** How long one boot may take before it is given up; default 90 s. */
  readonly bootTimeoutMs?: number | undefined;
  readonly onProgress?: ((message: string) => void) | undefined;
}

const REPOSITORY = path.resolve(import.meta.dirname, '../..');
/** Where guest/init mounts the shared directory. */
const SHARED_PATH = '/mnt/host';

/** What a machine is booted with. */
interface Means {
  readonly kernel: Kernel;
  readonly emulator: Emulator;
  readonly accelerator: Accelerator;
}

interface Running {
  readonly agent: AgentClient;
  readonly parts: Parts;
  readonly network: Network;
  readonly accelerator: Accelerator;
  readonly kernelRelease: string;
}

export class Vm implements Machine {
  readonly kind = 'vm';
  readonly sharedPath = SHARED_PATH;
  readonly kernelRelease: string;
  readonly accelerator: Accelerator;
  readonly hostAddress: string;
  readonly hostNetns: string | null;
  readonly sharedHostPath: string;
  /** qemu's and virtiofsd's process ids. */
  readonly pids: readonly number[];
  readonly #agent: AgentClient;
  readonly #parts: Parts;

  /**
   * A running machine: the VM, or with BLOCKWIRE_VM=host this host. Throws BW_UNSUPPORTED_HOST when something is
   * missing here, BW_TIMEOUT or BW_IO when it does not come up.
   */
  static async boot(options: VmOptions = {}): Promise<Machine> {
    if (isHostWanted(process.env)) return HostMachine.start(REPOSITORY);
    return Vm.bootGuest(options);
  }

  /** The VM, whatever the environment says. */
  static async bootGuest(options: VmOptions = {}): Promise<Vm> {
    const onProgress = options.onProgress ?? (() => {});
    const cache = cacheDirectory();
    const kernel = await ensureKernel(cache, { onProgress });
    const emulator = await ensureEmulator(cache, onProgress);
    fillStripped();
    await sweep();
    const memory = new AcceleratorMemory(cache);
    let failure: unknown;
    for (const accelerator of await memory.attempts()) {
      onProgress(`Booting Linux ${kernel.release} (${accelerator})${failure ? ', again' : ''}`);
      try {
        const vm = await Vm.#bootOnce({ kernel, emulator, accelerator }, options);
        await memory.remember(accelerator);
        return vm;
      } catch (error) {
        if (error instanceof BlockwireError && error.code === 'BW_UNSUPPORTED_HOST') throw error;
        failure = error;
      }
    }
    throw failure;
  }

  static async #bootOnce({ kernel, emulator, accelerator }: Means, options: VmOptions): Promise<Vm> {
    const parts = new Parts();
    try {
      await parts.create();
      const network = await makeNetwork(parts.name, options);
      parts.network = network;
      await fs.writeFile(
        parts.file('initramfs'),
        await buildInitramfs({
          kernel,
          repositoryPath: REPOSITORY,
          address: network.address,
          gateway: network.hostAddress,
        }),
      );
      // The project's files may be edited meanwhile: names and attributes are believed for a second, and the
      // pages kept as long as those do not change. Without cache=always every open reads the file again.
      await parts.startFileServer('root', '/', 'cache=always,timeout=1');
      await parts.startFileServer('share', parts.sharePath, 'cache=auto,timeout=0');
      const { connected } = await parts.listen();
      const qemu = parts.start(
        emulator.program,
        qemuArgs({
          firmwareArgs: emulator.args,
          accelerator,
          kernel,
          initramfsPath: parts.file('initramfs'),
          memoryMiB: options.memoryMiB ?? 4096,
          cpus: options.cpus ?? 2,
          networkArgs: network.qemuArgs,
          consolePath: parts.file('console'),
          agentSocket: parts.file('agent.sock'),
          rootSocket: parts.file('root.sock'),
          shareSocket: parts.file('share.sock'),
        }),
        network.netns,
      );
      const broken = parts.whenBroken(qemu, AbortSignal.timeout(options.bootTimeoutMs ?? 90_000));
      broken.catch(() => {});
      const socket = await Promise.race([connected, broken]);
      const agent = new AgentClient({ readable: socket, writable: socket }, REPOSITORY, () =>
        parts.describeEnd(),
      );
      const kernelRelease = await Promise.race([agent.ready, broken]);
      parts.booted();
      await fs.rm(parts.file('initramfs'));
      return new Vm({ agent, parts, network, accelerator, kernelRelease });
    } catch (error) {
      await parts.close();
      throw error;
    }
  }

  private constructor({ agent, parts, network, accelerator, kernelRelease }: Running) {
    this.#agent = agent;
    this.#parts = parts;
    this.accelerator = accelerator;
    this.kernelRelease = kernelRelease;
    this.hostAddress = network.hostAddress;
    this.hostNetns = network.netns;
    this.sharedHostPath = parts.sharePath;
    this.pids = parts.pids;
  }

  start: Machine['start'] = (command, options) => this.#agent.start(command, options);
  run: Machine['run'] = (command, options) => runWith(this, command, options);
  check: Machine['check'] = (command, options) => checkWith(this, command, options);

  /** The kernel's messages so far. */
  console(): Promise<string> {
    return this.#parts.console();
  }

  async close(): Promise<void> {
    this.#agent.fail(new BlockwireError('BW_SHUTTING_DOWN', 'The VM was closed.'));
    await this.#parts.close();
  }
}

async function makeNetwork(name: string, { network, peerOf, forwards }: VmOptions): Promise<Network> {
  if (peerOf !== undefined) return peerNetwork(peerOf);
  return network === 'tap' ? tapNetwork(name) : slirpNetwork(forwards);
}
