/** One process of a local cluster: its log file, the line that says it is ready, and its end. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, renameSync } from 'node:fs';
import { createInterface } from 'node:readline';

const TAIL_LINES = 20;

export interface ChildExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface ChildOptions {
  /** node-1, control, …; also names the log file. */
  readonly name: string;
  /** Interpreter and its arguments. */
  readonly command: readonly [string, ...string[]];
  readonly logPath: string;
}

export class Child {
  readonly name: string;
  /** Resolves once, when the process has ended or could not be started. */
  readonly exited: Promise<ChildExit>;
  /** Resolves when the process wrote its ready line; stays pending when it ends before. */
  readonly ready: Promise<void>;
  readonly #process: ChildProcess;
  readonly #logPath: string;
  #exit: ChildExit | null = null;

  /** Starts the process. The log of an earlier run is kept as `NAME.log.1`. */
  constructor({ name, command, logPath }: ChildOptions) {
    this.name = name;
    this.#logPath = logPath;
    if (existsSync(logPath)) renameSync(logPath, `${logPath}.1`);
    const log = openSync(logPath, 'a');
    const [file, ...args] = [...deathSignalPrefix(), ...command] as [string, ...string[]];
    // A process group of its own: Ctrl-C reaches only `up`, which then stops the cluster in order.
    this.#process = spawn(file, args, { stdio: ['ignore', 'pipe', log], detached: true });
    closeSync(log);
    this.exited = new Promise((resolve) => {
      const end = (exit: ChildExit): void => {
        this.#exit = exit;
        resolve(exit);
      };
      this.#process.once('exit', (code, signal) => end({ code, signal }));
      this.#process.once('error', () => {
        if (this.#process.pid === undefined) end({ code: 127, signal: null });
      });
    });
    this.ready = new Promise((resolve) => {
      createInterface({ input: this.#process.stdout! }).on('line', (line) => {
        if (line.startsWith('{')) resolve();
      });
    });
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  /** How it ended; null while it runs. */
  get exit(): ChildExit | null {
    return this.#exit;
  }

  /** The last lines of its log, indented for a message. */
  tail(): string {
    const lines = readFileSync(this.#logPath, 'utf8').trimEnd().split('\n').slice(-TAIL_LINES);
    return lines.map((line) => `  ${line}`).join('\n');
  }

  /** SIGTERM, and SIGKILL after `boundMs`. Resolves when it has ended: true if the SIGTERM was enough. */
  async stop(boundMs: number): Promise<boolean> {
    if (this.#exit !== null) return true;
    this.#process.kill('SIGTERM');
    const { promise: late, resolve } = Promise.withResolvers<'late'>();
    const timer = setTimeout(resolve, boundMs, 'late');
    const outcome = await Promise.race([this.exited, late]);
    clearTimeout(timer);
    if (outcome !== 'late') return true;
    this.#process.kill('SIGKILL');
    await this.exited;
    return false;
  }
}

/** `exit code 1` or `SIGKILL`. */
export function describeExit({ code, signal }: ChildExit): string {
  return signal ?? `exit code ${code}`;
}

let deathSignal: readonly string[] | null = null;

/**
 * A cluster must not outlive an `up` that was killed outright. Only the child itself can ask the kernel for a
 * signal at its parent's death (PR_SET_PDEATHSIG), so util-linux's setpriv, where it exists, does and then execs.
 */
function deathSignalPrefix(): readonly string[] {
  if (deathSignal === null) {
    const prefix = ['setpriv', '--pdeathsig', 'TERM', '--'];
    deathSignal = spawnSync(prefix[0]!, [...prefix.slice(1), 'true']).status === 0 ? prefix : [];
  }
  return deathSignal;
}
