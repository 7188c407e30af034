/** A storage node as a process of its own, for programs that kill it: no test context needed. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { withStrippedHook } from '@blockwire/shared/stripped/path.mjs';

const MAIN = new URL('../../services/node/main.ts', import.meta.url).pathname;
const KEPT_LOG_CHARS = 64 * 1024;

export interface StorageNodeOptions {
  readonly dataDir: string;
  /** NAME=BYTES, created at the first start. */
  readonly exports: readonly string[];
  /** Further arguments of the node. */
  readonly extra?: readonly string[];
}

export class StorageNode {
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  #log = '';
  #ended: string | null = null;
  /** host:port */
  nbd = '';
  /** http://host:port */
  metrics = '';

  /** Starts a node on free ports; resolves when it serves. Throws with its log when it ends before. */
  static async start(options: StorageNodeOptions): Promise<StorageNode> {
    const node = StorageNode.launch(options);
    await node.ready;
    return node;
  }

  /** Starts a node without waiting: it can be killed while it starts. */
  static launch(options: StorageNodeOptions): StorageNode {
    return new StorageNode(options);
  }

  /** Resolves when it serves. */
  readonly ready: Promise<void>;

  private constructor({ dataDir, exports, extra = [] }: StorageNodeOptions) {
    const fixed = ['--id', 'node-1', '--data-dir', dataDir, '--nbd-port', '0', '--metrics-port', '0'];
    const named = exports.flatMap((setting) => ['--export', setting]);
    // setpriv replaces itself by the node: a harness that is killed leaves none behind.
    this.#child = spawn(
      'setpriv',
      ['--pdeathsig', 'KILL', process.execPath, MAIN, ...fixed, '--json', ...named, ...extra],
      {
        stdio: ['ignore', 'pipe', 'pipe'],
        env: { ...process.env, NODE_OPTIONS: withStrippedHook(process.env.NODE_OPTIONS) },
      },
    );
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#log = (this.#log + text).slice(-KEPT_LOG_CHARS);
    });
    this.#exited = once(this.#child, 'close').then(([code, signal]) => {
      this.#ended = signal === null ? `exit code ${code}` : String(signal);
    });
    let output = '';
    const line = new Promise<void>((resolve) => {
      this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
        output += text;
        if (output.includes('\n')) resolve();
      });
    });
    this.ready = Promise.race([line, this.#exited]).then(() => {
      if (!output.includes('\n')) {
        throw new Error(`the node ended before it was ready (${this.#ended}): ${this.#log}`);
      }
      const { nbd, metrics } = JSON.parse(output) as { nbd: string; metrics: string };
      this.nbd = nbd;
      this.metrics = metrics;
    });
    this.ready.catch(() => {});
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** How the process ended; null while it runs. */
  get ended(): string | null {
    return this.#ended;
  }

  get log(): string {
    return this.#log;
  }

  /** Sends the signal and waits for the end; returns how it ended. */
  async end(signal: NodeJS.Signals): Promise<string> {
    if (this.#ended === null) this.#child.kill(signal);
    await this.#exited;
    return this.#ended ?? '';
  }

  /** The sum of a series of `/metrics` over its labels; NaN if it is not there. */
  async metric(name: string): Promise<number> {
    const text = await (await fetch(`${this.metrics}/metrics`)).text();
    const values = text
      .split('\n')
      .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
      .map((line) => Number(line.split(' ').at(-1)));
    return values.length === 0 ? Number.NaN : values.reduce((sum, value) => sum + value, 0);
  }

  /** Memory of the process that is its own and in use, in bytes. */
  residentBytes(): number {
    const found = /^RssAnon:\s+(\d+) kB/m.exec(readFileSync(`/proc/${this.pid}/status`, 'utf8'));
    return found === null ? Number.NaN : Number(found[1]) * 1024;
  }

  /** Open file descriptors of the process. */
  descriptors(): number {
    const found = /^FDSize:\s+(\d+)/m.exec(readFileSync(`/proc/${this.pid}/status`, 'utf8'));
    return found === null ? Number.NaN : Number(found[1]);
  }
}
