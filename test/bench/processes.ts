/** The processes that a benchmark starts: found by pid, ended by pid, and gone when the benchmark is, however it ends. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';

const KEPT_OUTPUT_CHARS = 4000;

/** Where a command runs: a network namespace by name, null for the host's own. */
function inNamespace(netns: string | null, command: readonly string[]): string[] {
  return netns === null ? [...command] : ['ip', 'netns', 'exec', netns, ...command];
}

export interface Daemon {
  readonly pid: number;
  /** What it printed last. */
  readonly output: () => string;
  /** Why it is not running any more; null while it is. */
  readonly ended: () => string | null;
  /** Its exit code once it ends by itself; 128 when a signal ended it. Throws BW_TIMEOUT. */
  wait(timeoutMs: number): Promise<number>;
  /** SIGKILL: some servers wait for their clients otherwise, and none has anything to save here. */
  kill(): Promise<void>;
}

/** Starts a process that ends with this one. */
export function startDaemon(command: readonly string[], options: { netns: string | null }): Daemon {
  // setpriv and ip replace themselves by the command, so that the pid is the command's own.
  const [program = '', ...args] = ['setpriv', '--pdeathsig', 'KILL', ...inNamespace(options.netns, command)];
  const child: ChildProcess = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], cwd: '/' });
  let output = '';
  const keep = (chunk: Buffer): void => {
    output = (output + chunk.toString()).slice(-KEPT_OUTPUT_CHARS);
  };
  child.stdout?.on('data', keep);
  child.stderr?.on('data', keep);
  let ended: string | null = null;
  let exitCode = 128;
  const exited = new Promise<void>((resolve) => {
    child.once('error', (error) => {
      ended = error.message;
      resolve();
    });
    child.once('exit', (code, signal) => {
      exitCode = code ?? 128;
      ended = `it ended with ${signal ?? `exit code ${code}`}`;
      resolve();
    });
  });
  if (child.pid === undefined) throw new BlockwireError('BW_IO', `${command[0]} does not start`);
  return {
    pid: child.pid,
    output: () => output.trim(),
    ended: () => ended,
    async wait(timeoutMs) {
      const timer = new AbortController();
      const late = sleep(timeoutMs, 'late', { signal: timer.signal }).catch(() => 'stopped');
      const outcome = await Promise.race([exited, late]);
      timer.abort();
      if (outcome === 'late') throw new BlockwireError('BW_TIMEOUT', `${command[0]} does not end`);
      return exitCode;
    },
    async kill() {
      if (ended === null) child.kill('SIGKILL');
      await exited;
    },
  };
}

/** Runs a program to its end and returns its output. Throws BW_IO with what it printed. */
export function runToEnd(
  command: readonly string[],
  options: { netns?: string | null; timeoutMs?: number; signal?: AbortSignal } = {},
): Promise<string> {
  const [program = '', ...args] = inNamespace(options.netns ?? null, command);
  return new Promise((resolve, reject) => {
    execFile(
      program,
      args,
      {
        cwd: '/',
        timeout: options.timeoutMs ?? 60_000,
        killSignal: 'SIGKILL',
        maxBuffer: 16 << 20,
        signal: options.signal,
      },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else {
          const said = `${stderr}${stdout}`.trim() || error.message;
          reject(new BlockwireError('BW_IO', `${command[0]}: ${said}`, { cause: error }));
        }
      },
    );
  });
}

/** What is to be undone at the end, last first. */
export class Cleanup {
  readonly #steps: (() => Promise<void>)[] = [];
  #running: Promise<void> | null = null;

  add(step: () => Promise<void>): void {
    this.#steps.push(step);
  }

  /** Undoes everything once; a step that fails does not keep the others from running. */
  run(): Promise<void> {
    this.#running ??= this.#runAll();
    return this.#running;
  }

  async #runAll(): Promise<void> {
    for (;;) {
      const step = this.#steps.pop();
      if (step === undefined) return;
      try {
        await step();
      } catch (error) {
        process.stderr.write(`cleaning up: ${String(error)}\n`);
      }
    }
  }
}

/** A shell's exit code in words: above 128 it stands for the signal that ended the command. */
export function describeExit(exitCode: number): string {
  const signal = Object.entries(constants.signals).find(([, number]) => exitCode === 128 + number)?.[0];
  return signal === undefined ? `exit code ${exitCode}` : `signal ${signal}`;
}
