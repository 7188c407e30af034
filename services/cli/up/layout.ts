/**
 * What a cluster directory remembers: `cluster.json` keeps ids and ports, so that the next `up` finds its nodes
 * where the volumes say they are; `run.json` exists while an `up` runs there and names its processes.
 *
 *   DIR/cluster.json  DIR/run.json  DIR/control/  DIR/node-1/ …  DIR/log/NAME.log
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Static, type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';
import { CommandError } from '../errors.ts';

const Port = Type.Integer({ minimum: 1, maximum: 65535 });

const Layout = Type.Object({
  restPort: Port,
  grpcPort: Port,
  nodes: Type.Array(Type.Object({ id: Type.String(), nbdPort: Port, metricsPort: Port })),
  agent: Type.Union([Type.Object({ id: Type.String(), metricsPort: Port }), Type.Null()]),
});
export type Layout = Static<typeof Layout>;

const ProcessMark = Type.Object({
  name: Type.String(),
  pid: Type.Integer({ minimum: 1 }),
  /** Field 22 of /proc/PID/stat: tells a process from a later one with the same pid. */
  startTicks: Type.String(),
});
type ProcessMark = Static<typeof ProcessMark>;

const Run = Type.Object({ up: ProcessMark, children: Type.Array(ProcessMark) });

const LEFTOVER_STOP_MS_MAX = 15_000;
const LEFTOVER_POLL_MS = 50;

/** What an earlier `up` in this directory used, or null at the first. */
export function readLayout(dir: string): Layout | null {
  return readDocument(join(dir, 'cluster.json'), Layout);
}

export function writeLayout(dir: string, layout: Layout): void {
  writeDocument(join(dir, 'cluster.json'), layout);
}

/**
 * Takes the directory for this process. Processes that a killed `up` left behind are ended first: two nodes on
 * one data directory would damage it.
 * @throws CommandError BW_CONFLICT when another `up` runs there, BW_IO when the directory cannot be used.
 */
export async function claimDirectory(dir: string): Promise<void> {
  try {
    mkdirSync(join(dir, 'log'), { recursive: true });
  } catch (error) {
    throw new CommandError('BW_IO', `cannot use ${dir}: ${error instanceof Error ? error.message : error}`);
  }
  const run = readDocument(join(dir, 'run.json'), Run);
  if (run !== null) {
    if (isAlive(run.up))
      throw new CommandError('BW_CONFLICT', `another "blockwire up" (pid ${run.up.pid}) runs in ${dir}`);
    for (const child of run.children) await endLeftover(child);
  }
  markRunning(dir, []);
}

/** Records the processes of this run. */
export function markRunning(dir: string, children: readonly { name: string; pid: number }[]): void {
  const mark = ({ name, pid }: { name: string; pid: number }): ProcessMark | null => {
    const startTicks = readStartTicks(pid);
    return startTicks === null ? null : { name, pid, startTicks };
  };
  const marks = children.map(mark).filter((child) => child !== null);
  writeDocument(join(dir, 'run.json'), { up: mark({ name: 'up', pid: process.pid }), children: marks });
}

export function releaseDirectory(dir: string): void {
  rmSync(join(dir, 'run.json'), { force: true });
}

async function endLeftover(mark: ProcessMark): Promise<void> {
  const deadline = performance.now() + LEFTOVER_STOP_MS_MAX;
  if (!isAlive(mark)) return;
  process.kill(mark.pid, 'SIGTERM');
  while (isAlive(mark)) {
    if (performance.now() > deadline) process.kill(mark.pid, 'SIGKILL');
    await sleep(LEFTOVER_POLL_MS);
  }
}

function isAlive({ pid, startTicks }: ProcessMark): boolean {
  return readStartTicks(pid) === startTicks;
}

/** null when there is no such process or only its unreaped remains. */
function readStartTicks(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // Field 2, the program's name, may hold spaces and parentheses; field 3 follows the last one.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? null : fields[19]!;
  } catch {
    return null;
  }
}

function readDocument<Schema extends TSchema>(path: string, schema: Schema): Static<Schema> | null {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch {
    return null;
  }
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    document = undefined;
  }
  if (Value.Check(schema, document)) return document;
  throw new CommandError('BW_IO', `${path} is damaged; move it away to start with new ports`);
}

function writeDocument(path: string, document: unknown): void {
  writeFileSync(`${path}.new`, `${JSON.stringify(document, null, 2)}\n`);
  renameSync(`${path}.new`, path);
}
