/** The processes of a local cluster, started in the order of their dependence and stopped in the reverse. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CommandError } from '../errors.ts';
import { RestClient } from '../rest/client.ts';
import { Child, type ChildExit, describeExit } from './child.ts';
import type { Plan, PlannedProcess } from './plan.ts';

const POLL_MS = 50;
const POLL_REQUEST_MS_MAX = 5_000;
/** Longer than a process's own bound for one part (services/shared/lifecycle.ts). */
const STOP_MS_MAX = 15_000;

export interface ClusterOptions {
  readonly dir: string;
  readonly plan: Plan;
  /** Until everything has registered. */
  readonly timeoutMs: number;
  /** Ends the start early. */
  readonly signal: AbortSignal;
  /** Called for each process as soon as it runs. */
  readonly onStarted: (children: readonly Child[]) => void;
  /** A remark for people. */
  readonly say: (message: string) => void;
}

export class Cluster {
  readonly #options: ClusterOptions;
  readonly #children: Child[] = [];
  readonly #client: RestClient;
  #stopping = false;

  constructor(options: ClusterOptions) {
    this.#options = options;
    this.#client = new RestClient(options.plan.rest);
  }

  pidOf(name: string): number | null {
    return this.#children.find((child) => child.name === name)?.pid ?? null;
  }

  /**
   * Starts everything and waits until the nodes and the agent have registered.
   * @throws CommandError BW_INTERNAL with the log's tail when a process ends, BW_TIMEOUT, BW_SHUTTING_DOWN when aborted.
   */
  async start(): Promise<void> {
    const { plan, timeoutMs } = this.#options;
    const deadline = performance.now() + timeoutMs;
    const control = this.#spawn(plan.control);
    await this.#until(deadline, [control], () => this.#answers());
    const nodes = plan.nodes.map((node) => this.#spawn(node));
    const agents = plan.agent === null ? [] : [this.#spawn(plan.agent)];
    await this.#until(deadline, [...nodes, ...agents], () => this.#registered());
    for (const child of this.#children) this.#report(child);
  }

  /** Resolves with how the control plane ended, should it end by itself. Nodes and agents may die: volumes survive that. */
  get controlEnded(): Promise<ChildExit> {
    return this.#children[0]!.exited;
  }

  /** Agent, then nodes, then control plane: each may still need the ones after it while it ends. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const { plan } = this.#options;
    const nodeNames = new Set(plan.nodes.map(({ name }) => name));
    await this.#stopAll(({ name }) => name === plan.agent?.name);
    await this.#stopAll(({ name }) => nodeNames.has(name));
    await this.#stopAll(({ name }) => name === plan.control.name);
  }

  #spawn({ name, command }: PlannedProcess): Child {
    const child = new Child({ name, command, logPath: join(this.#options.dir, 'log', `${name}.log`) });
    this.#children.push(child);
    this.#options.onStarted(this.#children);
    return child;
  }

  async #until(deadline: number, starting: readonly Child[], done: () => Promise<boolean>): Promise<void> {
    const { signal, timeoutMs } = this.#options;
    const unready = new Set(starting);
    for (const child of starting) void child.ready.then(() => unready.delete(child));
    for (;;) {
      if (signal.aborted) throw new CommandError('BW_SHUTTING_DOWN', 'stopped before the cluster was ready');
      for (const child of this.#children) if (child.exit !== null) throw startFailure(child, child.exit);
      if (unready.size === 0 && (await done())) return;
      if (performance.now() > deadline) {
        const late = [...unready][0] ?? starting[0]!;
        const tail = `; the end of its log:\n${late.tail()}`;
        throw new CommandError(
          'BW_TIMEOUT',
          `${late.name} was not ready within ${timeoutMs / 1000} s${tail}`,
        );
      }
      await sleep(POLL_MS);
    }
  }

  async #answers(): Promise<boolean> {
    try {
      await this.#client.listNodes(POLL_REQUEST_MS_MAX);
      return true;
    } catch (error) {
      // Not listening yet. A wrong answer is another program's on our port, and stays wrong.
      if (error instanceof CommandError && error.code !== 'BW_PROTOCOL') return false;
      throw error;
    }
  }

  async #registered(): Promise<boolean> {
    const { plan } = this.#options;
    const nodes = await this.#client.listNodes(POLL_REQUEST_MS_MAX);
    const here = (wanted: PlannedProcess & { nbd: string }): boolean =>
      nodes.some(({ id, state, nbd }) => id === wanted.name && state === 'online' && nbd === wanted.nbd);
    if (!plan.nodes.every(here)) return false;
    if (plan.agent === null) return true;
    const agents = await this.#client.listAgents(POLL_REQUEST_MS_MAX);
    return agents.some(({ id, state }) => id === plan.agent?.name && state === 'online');
  }

  #report(child: Child): void {
    void child.exited.then((exit) => {
      if (!this.#stopping) this.#options.say(`${child.name} (pid ${child.pid}) ended: ${describeExit(exit)}`);
    });
  }

  async #stopAll(match: (child: Child) => boolean): Promise<void> {
    const stopOne = async (child: Child): Promise<void> => {
      if (await child.stop(STOP_MS_MAX)) return;
      this.#options.say(`${child.name} did not end within ${STOP_MS_MAX / 1000} s and was killed`);
    };
    await Promise.all(this.#children.filter(match).map(stopOne));
  }
}

function startFailure(child: Child, exit: ChildExit): CommandError {
  return new CommandError(
    'BW_INTERNAL',
    `${child.name} failed to start (${describeExit(exit)}); the end of its log:\n${child.tail()}`,
  );
}
