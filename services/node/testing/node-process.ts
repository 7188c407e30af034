/** A node as a process of its own, for tests. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

export interface Run {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end; it is killed after `timeoutMs`. */
export async function run(
  command: string,
  args: readonly string[],
  options: { input?: string; timeoutMs?: number } = {},
): Promise<Run> {
  const child = spawn(command, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    timeout: options.timeoutMs ?? 60_000,
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  // It may have ended already.
  child.stdin.on('error', () => undefined);
  child.stdin.end(options.input ?? '');
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, stdout, stderr };
}

export interface NodeProcess {
  readonly child: ChildProcess;
  /** host:port */
  readonly nbd: string;
  /** http://host:port */
  readonly metrics: string;
  log(): string;
  /** Sends the signal and waits for the end; resolves with the exit code (null: killed). */
  end(signal: NodeJS.Signals): Promise<number | null>;
  metric(name: string): Promise<number>;
}

export function temporaryDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-node-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Starts a node on free ports and waits until it is ready; it is killed when the test ends. */
export async function startNode(
  t: TestContext,
  dataDir: string,
  extra: readonly string[] = [],
): Promise<NodeProcess> {
  const main = new URL('../main.ts', import.meta.url).pathname;
  const common = [
    '--id',
    'node-1',
    '--data-dir',
    dataDir,
    '--nbd-port',
    '0',
    '--metrics-port',
    '0',
    '--json',
  ];
  const child = spawn(process.execPath, [main, ...common, ...extra], { stdio: ['ignore', 'pipe', 'pipe'] });
  const exited = once(child, 'exit') as Promise<[number | null]>;
  t.after(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
    await exited;
  });
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    log += text;
  });
  let output = '';
  const ready = await new Promise<string>((resolve, reject) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      if (output.includes('\n')) resolve(output);
    });
    void exited.then(([code]) => reject(new Error(`the node ended (${code}) before it was ready: ${log}`)));
  });
  const { nbd, metrics } = JSON.parse(ready) as { nbd: string; metrics: string };
  return {
    child,
    nbd,
    metrics,
    log: () => log,
    end: async (signal) => {
      child.kill(signal);
      const [code] = await exited;
      return code;
    },
    metric: async (name) => {
      const text = await (await fetch(`${metrics}/metrics`)).text();
      const lines = text
        .split('\n')
        .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
      return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
    },
  };
}

/** Waits until a condition holds; fails after ten seconds. */
export async function eventually(what: string, condition: () => Promise<boolean> | boolean): Promise<void> {
  for (let i = 0; i < 200; i++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`not within ten seconds: ${what}`);
}
