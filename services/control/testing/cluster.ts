/** A control plane in this process with fake nodes and agents around it, for tests. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { Lifecycle } from '@blockwire/shared/lifecycle.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import type { Policy, Timing } from '../domain/context.ts';
import type { VolumeView } from '../routes/schemas.ts';
import { type ControlPlane, startControl } from '../server.ts';
import { openSqliteStore } from '../store/sqlite.ts';
import { FakeAgent, FakeNode } from './fakes.ts';

export interface Failure {
  readonly code: string;
  readonly message: string;
  readonly details?: Readonly<Record<string, unknown>>;
}

export interface Answer<Body> {
  readonly status: number;
  readonly headers: Headers;
  /** The parsed body, of the shape the caller expects; undefined when it is empty. */
  readonly body: Body;
}

export class Cluster {
  readonly #directory: string;
  readonly #timing: Partial<Timing>;
  readonly #policy: Partial<Policy>;
  #control: ControlPlane | null = null;
  #lifecycle: Lifecycle | null = null;
  readonly nodes: FakeNode[] = [];
  readonly agents: FakeAgent[] = [];

  constructor(t: TestContext, timing: Partial<Timing>, policy: Partial<Policy>) {
    this.#directory = mkdtempSync(join(tmpdir(), 'bw-control-'));
    this.#timing = timing;
    this.#policy = policy;
    t.after(async () => {
      await Promise.all([...this.nodes, ...this.agents].map((member) => member.close()));
      await this.stop();
      rmSync(this.#directory, { recursive: true, force: true });
    });
  }

  get control(): ControlPlane {
    if (this.#control === null) throw new Error('the control plane is not running');
    return this.#control;
  }

  get databasePath(): string {
    return join(this.#directory, 'control.db');
  }

  async start(): Promise<void> {
    const log = createLogger('test');
    log.level = process.env.BLOCKWIRE_LOG ?? 'silent';
    this.#lifecycle = new Lifecycle(log);
    this.#control = await startControl({
      host: '127.0.0.1',
      restPort: 0,
      grpcPort: 0,
      store: openSqliteStore(this.databasePath),
      log,
      lifecycle: this.#lifecycle,
      timing: this.#timing,
      policy: this.#policy,
    });
  }

  /** @returns the exit code that the process would have. */
  async stop(): Promise<number> {
    const code = (await this.#lifecycle?.stop()) ?? 0;
    this.#control = null;
    this.#lifecycle = null;
    return code;
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.start();
  }

  async addNode(node: FakeNode): Promise<FakeNode> {
    this.nodes.push(node);
    await node.connect(this.control.grpc);
    return node;
  }

  async addAgent(id: string): Promise<FakeAgent> {
    const agent = new FakeAgent(id);
    this.agents.push(agent);
    await agent.connect(this.control.grpc);
    return agent;
  }

  async reconnectAll(): Promise<void> {
    for (const member of [...this.nodes, ...this.agents]) await member.connect(this.control.grpc);
  }

  async request<Body = Failure>(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer<Body>> {
    const hasBody = body !== undefined;
    const response = await fetch(`${this.control.rest}${path}`, {
      method,
      headers: { ...(hasBody ? { 'content-type': 'application/json' } : {}), ...headers },
      body: hasBody ? (typeof body === 'string' ? body : JSON.stringify(body)) : null,
    });
    const text = await response.text();
    return { status: response.status, headers: response.headers, body: text ? JSON.parse(text) : undefined };
  }

  /** Resolves when the condition holds; the test's own time limit ends a wait in vain. */
  async until(condition: () => boolean | Promise<boolean>): Promise<void> {
    while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export function createVolume(
  cluster: Cluster,
  body: { name: string; sizeBytes?: number; replicas?: number },
  headers: Record<string, string> = {},
): Promise<Answer<VolumeView>> {
  return cluster.request('POST', '/v1/volumes', { sizeBytes: 2 ** 20, replicas: 2, ...body }, headers);
}

/** A control plane with so many nodes, and agents if asked for, all online. */
export async function startCluster(
  t: TestContext,
  options: {
    nodeCount?: number;
    agentCount?: number;
    timing?: Partial<Timing>;
    policy?: Partial<Policy>;
  } = {},
): Promise<Cluster> {
  const { nodeCount = 2, agentCount = 0, timing = {}, policy = {} } = options;
  // What the control plane does by itself begins when something comes online, unless the test says how often.
  const cluster = new Cluster(t, { reconnectGraceMs: 0, rebuildSweepMs: 3_600_000, ...timing }, policy);
  await cluster.start();
  for (let index = 1; index <= nodeCount; index++) await cluster.addNode(new FakeNode(`node-${index}`));
  for (let index = 1; index <= agentCount; index++) await cluster.addAgent(`agent-${index}`);
  return cluster;
}
