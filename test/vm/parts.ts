/** What a VM consists of on the host: a directory, processes, a socket, a network; all of it goes with close(). */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import * as os from 'node:os';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { type Network, sweepNetworks } from './network.ts';
import { findProgram } from './programs.ts';

const NAME_PREFIX = 'bwvm-';
const CONSOLE_TAIL_LINES = 60;
let machineCount = 0;

export class Parts {
  /** Names the directory and the network namespace; holds this process's id for `sweep`. */
  readonly name = `${NAME_PREFIX}${process.pid}-${++machineCount}`;
  readonly #directory = path.join(os.tmpdir(), this.name);
  readonly sharePath = this.file('share');
  network: Network | null = null;
  readonly #processes: ChildProcess[] = [];
  #messages = '';
  #isBooted = false;
  #server: Server | null = null;
  #closed: Promise<void> | null = null;

  async create(): Promise<void> {
    await fs.mkdir(this.sharePath, { recursive: true });
    await fs.chmod(this.#directory, 0o700);
  }

  file(name: string): string {
    return path.join(this.#directory, name);
  }

  get pids(): number[] {
    return this.#processes.map((child) => child.pid).filter((pid) => pid !== undefined);
  }

  /** Starts a program that the kernel kills when this process ends, however it ends. */
  start(program: string, args: readonly string[], netns: string | null = null): ChildProcess {
    const enter = netns === null ? [] : [findProgram('ip'), 'netns', 'exec', netns];
    const child = spawn(
      findProgram('setpriv'),
      ['--pdeathsig', 'KILL', ...enter, findProgram(program), ...args],
      // A session of its own: Ctrl-C is for this process, which decides what ends when.
      { stdio: ['ignore', 'pipe', 'pipe'], detached: true },
    );
    const keep = (chunk: Buffer) => {
      this.#messages = `${this.#messages}${chunk}`.slice(-4096);
    };
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    child.on('error', (error) => keep(Buffer.from(error.message)));
    this.#processes.push(child);
    return child;
  }

  /** Serves `source` to the guest; it ends when qemu does. */
  async startFileServer(name: string, source: string, caching: string): Promise<void> {
    const socket = this.file(`${name}.sock`);
    const child = this.start('virtiofsd', [
      `--socket-path=${socket}`,
      '-o',
      // Sandbox chroot, not namespace: it also works in containers.
      `source=${source},sandbox=chroot,${caching},xattr,flock,log_level=err`,
    ]);
    for (let i = 0; !existsSync(socket); i++) {
      if (child.exitCode !== null || i === 500) {
        throw new BlockwireError('BW_UNSUPPORTED_HOST', `virtiofsd does not start: ${this.#messages}`);
      }
      await delay(10);
    }
  }

  /** Resolves with qemu's connection for the agent's channel. */
  async listen(): Promise<{ connected: Promise<Socket> }> {
    this.#server = createServer();
    const connected = once(this.#server, 'connection').then(([socket]) => socket as Socket);
    connected.catch(() => {});
    this.#server.listen(this.file('agent.sock'));
    await once(this.#server, 'listening');
    return { connected };
  }

  /** From here on whenBroken has nothing to say. */
  booted(): void {
    this.#isBooted = true;
  }

  /** Rejects when the boot fails: qemu ends, kvm reports an error it cannot go on after, or time is up. */
  async whenBroken(qemu: ChildProcess, deadline: AbortSignal): Promise<never> {
    while (!deadline.aborted && isRunning(qemu)) {
      if (this.#isBooted) return new Promise<never>(() => {});
      // qemu stops the machine and stays when the processor cannot run the guest.
      if (this.#messages.includes('KVM internal error')) break;
      await delay(100, undefined, { ref: false });
    }
    const details = `${this.#messages}\n${await this.consoleTail()}`.trim();
    throw deadline.aborted
      ? new BlockwireError('BW_TIMEOUT', `The VM is not ready in time.\n${details}`)
      : new BlockwireError('BW_IO', `The VM died while booting.\n${details}`);
  }

  console(): Promise<string> {
    return fs.readFile(this.file('console'), 'utf8').catch(() => '');
  }

  async consoleTail(): Promise<string> {
    return (await this.console()).split('\n').slice(-CONSOLE_TAIL_LINES).join('\n');
  }

  /** Why the guest is gone. The channel closes before its last words are in the file: wait for qemu's end. */
  async describeEnd(): Promise<string> {
    const qemu = this.#processes.at(-1);
    if (qemu && isRunning(qemu)) await Promise.race([once(qemu, 'exit'), delay(1000)]);
    const how = qemu?.exitCode ?? qemu?.signalCode ?? 'still running';
    return `The VM has ended (qemu: ${how}). ${this.#messages}\nThe last lines of its console:\n${await this.consoleTail()}`;
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#server?.close();
    // qemu first: the file servers end with it.
    for (const child of this.#processes.toReversed()) {
      if (!isRunning(child)) continue;
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    }
    await this.network?.remove();
    await fs.rm(this.#directory, { recursive: true, force: true });
  }
}

function isRunning(child: ChildProcess): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null;
}

/** Removes what killed processes left: directories and network namespaces that carry a dead process's id. */
export async function sweep(): Promise<void> {
  const isStale = (name: string) => {
    const pid = new RegExp(`^${NAME_PREFIX}(\\d+)-\\d+$`).exec(name)?.[1];
    return pid !== undefined && !existsSync(`/proc/${pid}`);
  };
  await sweepNetworks(isStale);
  for (const name of (await fs.readdir(os.tmpdir())).filter(isStale)) {
    await fs.rm(path.join(os.tmpdir(), name), { recursive: true, force: true });
  }
}
