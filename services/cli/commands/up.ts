/** `blockwire up`: a whole cluster on this machine, in the foreground until SIGTERM, SIGINT or SIGHUP. */
import { once } from 'node:events';
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { CommandError, ExitCode, usageError } from '../errors.ts';
import { type Output, writeAnswer } from '../output.ts';
import { formatProperties, formatTable } from '../table.ts';
import { describeExit } from '../up/child.ts';
import { Cluster } from '../up/cluster.ts';
import { claimDirectory, markRunning, readLayout, releaseDirectory, writeLayout } from '../up/layout.ts';
import {
  chooseLayout,
  makePlan,
  mergeLayouts,
  type Plan,
  REST_PORT_DEFAULT,
  type UpOptions,
} from '../up/plan.ts';
import { localHost, withPortLock } from '../up/ports.ts';
import { type Context, globalOptions } from './context.ts';

const NODES_MAX = 64;
const NODES_DEFAULT = 2;
const LAUNCHER_POLL_MS = 1_000;

interface RawOptions {
  readonly dir: string;
  readonly nodes: string;
  readonly agent: boolean;
  readonly host: string;
  readonly advertiseHost?: string;
  readonly restPort?: string;
  readonly grpcPort?: string;
  readonly timeout: string;
}

interface UpSettings {
  readonly timeoutMs: number;
  readonly json: boolean;
}

export function addUpCommand(
  program: Command,
  context: Context,
  setExitCode: (code: ExitCode) => void,
): void {
  program
    .command('up')
    .description('run a cluster on this machine: a control plane, storage nodes and an agent')
    .option('--dir <dir>', 'where data, ports and logs are kept', 'blockwire-data')
    .option('--nodes <count>', 'storage nodes', String(NODES_DEFAULT))
    .option('--no-agent', 'without an agent (attaching needs ublk on this machine)')
    .option('--host <address>', 'address to listen on', '127.0.0.1')
    .option('--advertise-host <address>', 'address at which agents reach the nodes (default: --host)')
    .option(
      '--rest-port <port>',
      `REST; 0 takes any free port (default: as last time, else ${REST_PORT_DEFAULT})`,
    )
    .option('--grpc-port <port>', 'gRPC; 0 takes any free port (default: the REST port + 1 if free)')
    .option('--timeout <seconds>', 'until everything has registered', '60')
    .action(async (raw: RawOptions, command: Command) => {
      const options = parseOptions(raw);
      const timeoutMs = parseNumber(raw.timeout, '--timeout', { min: 1, max: 86_400 }) * 1000;
      setExitCode(await runUp(options, { timeoutMs, json: globalOptions(command).json }, context));
    });
}

/** Runs the cluster until it is asked to end: exit code 0. When the control plane ends by itself: 1. */
async function runUp(options: UpOptions, settings: UpSettings, context: Context): Promise<ExitCode> {
  const ending = endRequested(context.environment);
  try {
    await claimDirectory(options.dir);
    try {
      return await runCluster(options, settings, { output: context.output, ending });
    } finally {
      releaseDirectory(options.dir);
    }
  } catch (error) {
    if (ending.signal.aborted && error instanceof CommandError && error.code === 'BW_SHUTTING_DOWN')
      return ExitCode.OK;
    throw error;
  } finally {
    ending.dispose();
  }
}

async function runCluster(
  options: UpOptions,
  { timeoutMs, json }: UpSettings,
  { output, ending }: { output: Output; ending: EndRequest },
): Promise<ExitCode> {
  const say = (message: string): void => output.stderr(`blockwire: ${message}\n`);
  const { dir } = options;
  const { cluster, plan } = await withPortLock({ timeoutMs, signal: ending.signal }, async () => {
    const saved = readLayout(dir);
    const layout = await chooseLayout(options, saved);
    const plan = makePlan(options, layout);
    const onStarted = (children: readonly { name: string; pid: number }[]): void =>
      markRunning(dir, children);
    const cluster = new Cluster({ dir, plan, timeoutMs, signal: ending.signal, onStarted, say });
    await stopOnFailure(cluster, () => cluster.start());
    writeLayout(dir, mergeLayouts(saved, layout));
    return { cluster, plan };
  });
  writeAnswer(output, json, readyDocument(plan, cluster, dir), () => readyText(plan, dir));
  const exit = await Promise.race([ending.requested, cluster.controlEnded]);
  if (exit !== null)
    say(`the control plane ended (${describeExit(exit)}); stopping the cluster. Logs: ${dir}/log`);
  await cluster.stop();
  return exit === null ? ExitCode.OK : ExitCode.FAILED;
}

async function stopOnFailure(cluster: Cluster, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    await cluster.stop();
    throw error;
  }
}

interface EndRequest {
  readonly signal: AbortSignal;
  readonly requested: Promise<null>;
  readonly dispose: () => void;
}

/**
 * A signal, or the loss of the launcher (blockwire.mjs on an older Node): killed outright, it cannot pass the
 * signal on, but this process then has another parent.
 */
function endRequested(environment: Context['environment']): EndRequest {
  const controller = new AbortController();
  const end = (): void => controller.abort();
  const signals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, end);
  const launcherPid = Number(environment.BLOCKWIRE_LAUNCHER_PID);
  // Not our launcher when the variable was only inherited from further up.
  const launched = launcherPid === process.ppid;
  const timer = setInterval(() => {
    if (launched && process.ppid !== launcherPid) end();
  }, LAUNCHER_POLL_MS);
  return {
    signal: controller.signal,
    requested: once(controller.signal, 'abort').then(() => null),
    dispose: () => {
      clearInterval(timer);
      for (const signal of signals) process.off(signal, end);
    },
  };
}

function readyDocument(plan: Plan, cluster: Cluster, dir: string): unknown {
  return {
    rest: plan.rest,
    grpc: plan.grpc,
    nodes: plan.nodes.map(({ name, nbd, metrics }) => ({ id: name, nbd, metrics, pid: cluster.pidOf(name) })),
    agent:
      plan.agent === null
        ? null
        : { id: plan.agent.name, metrics: plan.agent.metrics, pid: cluster.pidOf(plan.agent.name) },
    dir,
  };
}

function readyText(plan: Plan, dir: string): string {
  const nodes = formatTable(
    [
      { header: 'NODE', value: ({ name }) => name },
      { header: 'NBD', value: ({ nbd }) => nbd },
      { header: 'METRICS', value: ({ metrics }) => `${metrics}/metrics` },
    ],
    plan.nodes,
  );
  const summary = formatProperties([
    ['rest', plan.rest],
    ['grpc', plan.grpc],
    ['agent', plan.agent?.name ?? 'none'],
    ['logs', `${dir}/log`],
  ]);
  return `${summary}\n${nodes}\nThe cluster is ready; Ctrl-C ends it. Next, in another shell:\n  blockwire${restHint(plan)} volume create data --size 1GiB --replicas ${Math.min(2, plan.nodes.length)}\n`;
}

function restHint(plan: Plan): string {
  return plan.rest === `http://127.0.0.1:${REST_PORT_DEFAULT}` ? '' : ` --rest ${plan.rest}`;
}

function parseOptions(raw: RawOptions): UpOptions {
  const port = (text: string | undefined, option: string): number | null =>
    text === undefined ? null : parseNumber(text, option, { min: 0, max: 65_535 });
  return {
    dir: resolve(raw.dir),
    nodes: parseNumber(raw.nodes, '--nodes', { min: 1, max: NODES_MAX }),
    agent: raw.agent,
    host: raw.host,
    advertiseHost: raw.advertiseHost ?? localHost(raw.host),
    restPort: port(raw.restPort, '--rest-port'),
    grpcPort: port(raw.grpcPort, '--grpc-port'),
  };
}

function parseNumber(text: string, option: string, { min, max }: { min: number; max: number }): number {
  const value = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= min && value <= max))
    throw usageError(`${option} takes a whole number from ${min} to ${max}`);
  return value;
}
