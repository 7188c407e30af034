/** This host as a machine: the same commands without a VM, where the host's kernel has ublk. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import * as path from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { AgentClient } from './agent-client.ts';
import { checkWith, type Machine, runWith } from './machine.ts';
import { Parts } from './parts.ts';

/** BLOCKWIRE_VM=host asks for the host, anything else for the VM. */
export function isHostWanted(env: NodeJS.ProcessEnv): boolean {
  return env.BLOCKWIRE_VM === 'host';
}

export class HostMachine implements Machine {
  readonly kind = 'host';
  readonly hostAddress = '127.0.0.1';
  readonly hostNetns = null;
  readonly kernelRelease: string;
  readonly sharedHostPath: string;
  readonly sharedPath: string;
  readonly #agent: AgentClient;
  readonly #child: ChildProcess;
  readonly #parts: Parts;

  /** Throws BW_UNSUPPORTED_HOST when the host's kernel has no ublk. */
  static async start(repositoryPath: string): Promise<HostMachine> {
    if (!existsSync('/dev/ublk-control')) {
      throw new BlockwireError(
        'BW_UNSUPPORTED_HOST',
        'BLOCKWIRE_VM=host, but this host has no /dev/ublk-control: load the module ublk_drv, or unset the variable.',
      );
    }
    const parts = new Parts();
    await parts.create();
    const child = spawn(process.execPath, [path.join(import.meta.dirname, 'guest/agent.ts'), '-'], {
      cwd: repositoryPath,
      env: { ...process.env, PATH: `${repositoryPath}/node_modules/.bin:${process.env.PATH}` },
      stdio: ['pipe', 'pipe', 'inherit'],
      // Ctrl-C is for this process, which closes the channel.
      detached: true,
    });
    const agent = new AgentClient(
      { readable: child.stdout, writable: child.stdin },
      repositoryPath,
      async () => "The host's agent has ended.",
    );
    return new HostMachine(agent, child, parts, await agent.ready);
  }

  private constructor(agent: AgentClient, child: ChildProcess, parts: Parts, kernelRelease: string) {
    this.#agent = agent;
    this.#child = child;
    this.#parts = parts;
    this.kernelRelease = kernelRelease;
    this.sharedHostPath = parts.sharePath;
    this.sharedPath = parts.sharePath;
  }

  start: Machine['start'] = (command, options) => this.#agent.start(command, options);
  run: Machine['run'] = (command, options) => runWith(this, command, options);
  check: Machine['check'] = (command, options) => checkWith(this, command, options);

  /** The agent kills what it started when its channel closes. */
  async close(): Promise<void> {
    const exited = this.#child.exitCode === null ? once(this.#child, 'exit') : null;
    this.#agent.fail(new BlockwireError('BW_SHUTTING_DOWN', 'The machine was closed.'));
    await exited;
    await this.#parts.close();
  }
}
