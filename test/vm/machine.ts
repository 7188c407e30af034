/** What tests see of a machine: the VM, or the host itself, both driven through the same agent. */

import { BlockwireError } from '@blockwire/shared/errors.ts';

export interface CommandOptions {
  /** After this the command's whole process group is killed. None by default. */
  readonly timeoutMs?: number | undefined;
  /** Output and error output as they come. */
  readonly onOutput?: ((chunk: Buffer) => void) | undefined;
  /** Default: the repository's root. */
  readonly cwd?: string | undefined;
  /** Added to the machine's own. */
  readonly env?: Readonly<Record<string, string>> | undefined;
}

export interface CommandResult {
  /** The shell's exit code; 128 + signal number when a signal ended it. */
  readonly exitCode: number;
  /** Output and error output in the order they were written; the last 16 MiB. */
  readonly output: string;
  readonly timedOut: boolean;
}

/** A command under way. */
export interface MachineProcess {
  /** Settles when the command's shell ends. Rejects with BW_IO when the machine goes away first. */
  readonly done: Promise<CommandResult>;
  /** To the command's standard input. */
  write(data: string | Uint8Array): void;
  /** Ends the command's standard input. */
  end(): void;
  /** A signal to the command's process group; SIGTERM by default. */
  kill(signal?: NodeJS.Signals): void;
  /** Resolves with the match once the output so far matches. Rejects with BW_IO when the command ends first. */
  waitFor(pattern: RegExp): Promise<RegExpExecArray>;
}

export interface Machine {
  readonly kind: 'vm' | 'host';
  /** As `uname -r` says. */
  readonly kernelRelease: string;
  /** The address under which programs inside reach servers outside. */
  readonly hostAddress: string;
  /** The network namespace in which such servers must listen (`ip netns exec NAME`), null for the host's own. */
  readonly hostNetns: string | null;
  /** A directory that outside and inside both read and write: its path outside. */
  readonly sharedHostPath: string;
  /** The same directory's path inside. */
  readonly sharedPath: string;
  /** Runs a bash command to its end; its input is empty. Several may run at once. */
  run(command: string, options?: CommandOptions): Promise<CommandResult>;
  /** Like run, but throws BW_IO with the output unless the exit code is 0. Returns the output. */
  check(command: string, options?: CommandOptions): Promise<string>;
  /** Starts a bash command and returns at once. */
  start(command: string, options?: CommandOptions): MachineProcess;
  /**
   * Ends the machine and the commands under way. Idempotent. On a host, unlike in the VM, a daemon that an earlier
   * command left behind stays.
   */
  close(): Promise<void>;
}

type Starter = Pick<Machine, 'start'>;

/** Machine.run on top of Machine.start. */
export function runWith(machine: Starter, command: string, options?: CommandOptions): Promise<CommandResult> {
  const started = machine.start(command, options);
  started.end();
  return started.done;
}

/** Machine.check on top of Machine.start. */
export async function checkWith(
  machine: Starter,
  command: string,
  options?: CommandOptions,
): Promise<string> {
  const { exitCode, output, timedOut } = await runWith(machine, command, options);
  if (timedOut) throw new BlockwireError('BW_TIMEOUT', `Timed out: ${command}\n${output}`);
  if (exitCode !== 0) throw new BlockwireError('BW_IO', `Exit code ${exitCode}: ${command}\n${output}`);
  return output;
}
