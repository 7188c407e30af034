/**
 * A cluster on this host (control plane and storage nodes), as a user starts it with `blockwire up`, and the agent inside
 * a machine that has ublk.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import type { Machine, MachineProcess } from '../vm/machine.ts';
import { findProgram } from '../vm/programs.ts';
import { Rest } from './rest.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const LAUNCHER = join(ROOT, 'services/cli/blockwire.mjs');
const LOG_TAIL_LINES = 15;
const AGENT_READY_MS_MAX = 120_000;
/** As a service manager would: with a cgroup of its own the agent keeps out of swap. */
const OWN_CGROUP =
  '{ echo +memory > /sys/fs/cgroup/cgroup.subtree_control; mkdir -p /sys/fs/cgroup/agent; ' +
  'echo $$ > /sys/fs/cgroup/agent/cgroup.procs; } 2>/dev/null';

const Ready = Type.Object({
  rest: Type.String(),
  grpc: Type.String(),
  nodes: Type.Array(
    Type.Object({ id: Type.String(), nbd: Type.String(), metrics: Type.String(), pid: Type.Integer() }),
  ),
});

export type ClusterNode = Static<typeof Ready>['nodes'][number];

export interface ClusterOptions {
  /** Address at which the machine reaches this host: `machine.hostAddress`. */
  readonly advertiseHost: string;
  /** Starts the name of its directory in the system's temporary one. */
  readonly name: string;
  /** Default 2. */
  readonly nodes?: number;
}

/** What tests do with a cluster, however its processes were started. */
export abstract class Cluster {
  abstract readonly dir: string;
  abstract readonly rest: Rest;
  abstract readonly nodes: readonly ClusterNode[];
  /** The control plane's gRPC, host:port as the machine reaches it. */
  abstract readonly grpc: string;

  /** Ends every process and removes the directory. Idempotent. */
  abstract close(): Promise<void>;
  /** The last lines of every process's log. */
  abstract logTails(): string;

  /** Throws when there is no such node. */
  node(id: string): ClusterNode {
    const found = this.nodes.find((node) => node.id === id);
    if (found === undefined) throw new RangeError(`no node ${id}`);
    return found;
  }

  /** A signal to a storage node's process itself. */
  signalNode(id: string, signal: NodeJS.Signals): void {
    process.kill(this.node(id).pid, signal);
  }

  /** Where a node keeps the bytes of a volume, or of one of its snapshots. */
  dataFile(nodeId: string, volumeId: string, snapshot?: string): string {
    const inside = snapshot === undefined ? [] : ['snapshots', snapshot];
    return join(this.dir, nodeId, 'replicas', volumeId, ...inside, 'data');
  }
}

export class UpCluster extends Cluster {
  readonly dir: string;
  readonly rest: Rest;
  readonly nodes: readonly ClusterNode[];
  readonly grpc: string;
  readonly #up: ChildProcess;

  /** Throws BW_IO with what `up` said when it does not come up. */
  static async start({ advertiseHost, name, nodes = 2 }: ClusterOptions): Promise<UpCluster> {
    const dir = fs.mkdtempSync(join(tmpdir(), `${name}-`));
    const parameters = ['up', '--dir', dir, '--nodes', String(nodes), '--rest-port', '0', '--no-agent'];
    // It must not outlive this process, however this one ends; and Ctrl-C is for this process alone.
    const up = spawn(
      findProgram('setpriv'),
      [
        ...['--pdeathsig', 'TERM', '--', process.execPath, LAUNCHER],
        ...[...parameters, '--advertise-host', advertiseHost, '--json'],
      ],
      { stdio: ['ignore', 'pipe', 'pipe'], detached: true },
    );
    let said = '';
    up.stderr.on('data', (chunk) => {
      said = `${said}${String(chunk)}`.slice(-16_384);
    });
    const lines: string[] = [];
    const reader = createInterface({ input: up.stdout }).on('line', (line) => lines.push(line));
    await Promise.race([once(reader, 'line'), once(up, 'exit')]);
    const ready: unknown = lines[0] === undefined ? null : JSON.parse(lines[0]);
    if (!Value.Check(Ready, ready)) {
      await endProcess(up);
      fs.rmSync(dir, { recursive: true, force: true });
      throw new BlockwireError('BW_IO', `blockwire up failed: ${said || String(lines[0])}`);
    }
    return new UpCluster(dir, advertiseHost, ready, up);
  }

  private constructor(dir: string, host: string, ready: Static<typeof Ready>, up: ChildProcess) {
    super();
    this.dir = dir;
    this.rest = new Rest(ready.rest);
    this.nodes = ready.nodes;
    this.grpc = `${host}:${ready.grpc.split(':').at(-1)}`;
    this.#up = up;
  }

  logTails(): string {
    const directory = join(this.dir, 'log');
    const names = fs.existsSync(directory) ? fs.readdirSync(directory).sort() : [];
    return names
      .map((name) => `--- ${name}\n${tail(fs.readFileSync(join(directory, name), 'utf8'))}`)
      .join('\n');
  }

  async close(): Promise<void> {
    // A stopped process cannot end.
    for (const { pid } of this.nodes) {
      if (isRunning(this.#up)) signalQuietly(pid, 'SIGCONT');
    }
    await endProcess(this.#up);
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

export interface AgentOptions {
  readonly id?: string;
  readonly replicaTimeoutMs?: number;
  /** Takes over from the one that runs. */
  readonly handover?: boolean;
  /** SIGKILL so long after its start, ready or not. */
  readonly killAfterMs?: number;
}

const AgentReady = Type.Object({
  id: Type.String(),
  takenOver: Type.Array(
    Type.Object({ device: Type.String(), pauseMs: Type.Union([Type.Number(), Type.Null()]) }),
  ),
  metrics: Type.String(),
});
export type Takeover = Static<typeof AgentReady>['takenOver'][number];

/** The agent inside the machine. */
export class Agent {
  readonly metricsPort: number;
  readonly process: MachineProcess;
  /** What it found of an earlier process. */
  readonly takenOver: readonly Takeover[];
  readonly #machine: Machine;
  #log: () => string;

  /** Resolves when it has registered. Throws BW_IO with its output when it ends first, BW_TIMEOUT. */
  static async start(machine: Machine, cluster: Cluster, options: AgentOptions = {}): Promise<Agent> {
    const { id = 'agent-1', replicaTimeoutMs, handover = false } = options;
    const parameters = [
      ...['--id', id, '--control', cluster.grpc],
      ...['--metrics-port', '0', '--json'],
      ...(replicaTimeoutMs === undefined ? [] : ['--replica-timeout', String(replicaTimeoutMs)]),
      ...(handover ? ['--handover'] : []),
    ];
    let log = '';
    const started = machine.start(`${OWN_CGROUP}; exec node agent/main.ts ${parameters.join(' ')}`, {
      onOutput: (chunk) => {
        log = `${log}${chunk}`.slice(-65_536);
      },
    });
    const late = setTimeout(() => started.kill('SIGKILL'), AGENT_READY_MS_MAX);
    if (options.killAfterMs !== undefined) setTimeout(() => started.kill('SIGKILL'), options.killAfterMs);
    try {
      const [line] = await started.waitFor(/^\{"id":.*"metrics":"http:\/\/[^"]*:\d+\/metrics"\}$/m);
      const ready: unknown = JSON.parse(line);
      if (!Value.Check(AgentReady, ready)) throw new BlockwireError('BW_PROTOCOL', `the agent said ${line}`);
      return new Agent(machine, started, ready, () => log);
    } finally {
      clearTimeout(late);
    }
  }

  private constructor(
    machine: Machine,
    started: MachineProcess,
    ready: Static<typeof AgentReady>,
    log: () => string,
  ) {
    this.#machine = machine;
    this.process = started;
    this.takenOver = ready.takenOver;
    this.metricsPort = Number(new URL(ready.metrics).port);
    this.#log = log;
  }

  /** `/metrics` or `/healthz`, asked from inside. Throws BW_IO for any status but 200. */
  get(path: '/metrics' | '/healthz'): Promise<string> {
    return this.#machine.check(`curl -sS --fail http://127.0.0.1:${this.metricsPort}${path}`, {
      timeoutMs: 60_000,
    });
  }

  /** SIGTERM; resolves with the exit code. */
  async stop(): Promise<number> {
    this.process.kill('SIGTERM');
    return (await this.process.done).exitCode;
  }

  /** Its log so far, the last 64 KiB. */
  get log(): string {
    return this.#log();
  }

  logTail(): string {
    return tail(this.#log());
  }
}

/** The value of a series in Prometheus text: the sum over all its lines that have the labels; NaN if there is none. */
export function metric(text: string, name: string, labels: Readonly<Record<string, string>> = {}): number {
  const values = text
    .split('\n')
    .filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`))
    .filter((line) => Object.entries(labels).every(([key, value]) => line.includes(`${key}="${value}"`)))
    .map((line) => Number(line.slice(line.lastIndexOf(' ') + 1)));
  return values.length === 0 ? Number.NaN : values.reduce((sum, value) => sum + value, 0);
}

/** The last lines of a log. */
export function tail(text: string): string {
  return text.trimEnd().split('\n').slice(-LOG_TAIL_LINES).join('\n');
}

function isRunning(child: ChildProcess): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null;
}

async function endProcess(child: ChildProcess): Promise<void> {
  if (!isRunning(child)) return;
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  await exited;
}

function signalQuietly(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended.
  }
}
