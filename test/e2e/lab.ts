/**
 * A cluster whose processes a test kills, starts again and cuts off: control plane and storage nodes are its own
 * children, not those of `blockwire up`, and each node is in a network namespace of its own.
 */
import * as fs from 'node:fs';
import * as os from 'node:os';
import { join } from 'node:path';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { programPath } from '../../services/cli/processes.ts';
import { Child } from '../../services/cli/up/child.ts';
import { findProgram, runProgram } from '../vm/programs.ts';
import { Cluster, type ClusterNode, tail } from './cluster.ts';
import { LabNetwork, sweepLabNetworks } from './lab-network.ts';
import { Rest } from './rest.ts';
import { eventually } from './wait.ts';

const PREFIX = 'bwlab-';
const CONTROL = 'control';
const STOP_MS_MAX = 15_000;
const DISK_BYTES = 64 * 2 ** 30;
const PORTS = { rest: 7400, grpc: 7401, nbd: 10809, metrics: 7411 } as const;
let labCount = 0;

export interface LabOptions {
  /** Default 3. */
  readonly nodes?: number;
  /** More options of the control plane. */
  readonly control?: readonly string[];
  /** The nodes' data on an XFS of its own: snapshots need reflinks. */
  readonly reflink?: boolean;
}

interface Member {
  readonly name: string;
  readonly command: readonly [string, ...string[]];
  child: Child | null;
  starts: number;
}

interface NodeMember extends Member {
  readonly nbd: string;
  readonly metrics: string;
  readonly netns: string;
}

export class LabCluster extends Cluster {
  readonly dir: string;
  readonly rest: Rest;
  readonly grpc: string;
  readonly #network: LabNetwork;
  readonly #control: Member;
  readonly #nodes: NodeMember[] = [];
  #isMounted = false;

  /** Needs root. Throws BW_INTERNAL with the log of a process that does not start, BW_TIMEOUT. */
  static async start({ nodes = 3, control = [], reflink = false }: LabOptions = {}): Promise<LabCluster> {
    await sweep();
    const name = `${PREFIX}${process.pid}-${++labCount}`;
    const dir = join(os.tmpdir(), name);
    fs.mkdirSync(dir);
    const lab = new LabCluster(dir, await LabNetwork.create(name, labCount), control);
    try {
      if (reflink) await lab.#mount();
      fs.mkdirSync(join(dir, 'log'));
      for (let index = 1; index <= nodes; index++) await lab.#add(`node-${index}`);
      await lab.startEverything();
      return lab;
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  private constructor(dir: string, network: LabNetwork, control: readonly string[]) {
    super();
    this.dir = dir;
    this.#network = network;
    const { hostAddress } = network;
    this.rest = new Rest(`http://${hostAddress}:${PORTS.rest}`);
    this.grpc = `${hostAddress}:${PORTS.grpc}`;
    this.#control = member(CONTROL, [
      process.execPath,
      ...[programPath('control'), '--data-dir', join(dir, CONTROL), '--json'],
      ...['--host', hostAddress, '--rest-port', `${PORTS.rest}`, '--grpc-port', `${PORTS.grpc}`],
      ...control,
    ]);
  }

  get nodes(): readonly ClusterNode[] {
    return this.#nodes.map(({ name, nbd, metrics, child }) => ({
      id: name,
      nbd,
      metrics,
      pid: child?.pid ?? 0,
    }));
  }

  /** SIGKILL; resolves when they have ended, all at once. Names: `control`, or those of nodes. */
  async kill(...names: readonly string[]): Promise<void> {
    const children = names.map((name) => this.#member(name).child).filter((child) => child !== null);
    for (const { pid } of children) process.kill(pid, 'SIGKILL');
    for (const child of children) await child.exited;
  }

  /** Starts again what was killed; resolves when the processes say that they are ready. */
  async restart(...names: readonly string[]): Promise<void> {
    await Promise.all(names.map((name) => start(this.#member(name), this.dir)));
  }

  /** After the kill of everything, or at first; resolves when all nodes are online. */
  async startEverything(): Promise<void> {
    await this.restart(CONTROL);
    await this.restart(...this.#nodes.map(({ name }) => name));
    for (const { name } of this.#nodes) await this.online(name);
  }

  /** Resolves when the control plane takes the node for online. Throws BW_TIMEOUT. */
  async online(nodeId: string, isOnline = true): Promise<void> {
    await eventually(
      () => this.rest.nodes(),
      (nodes) => nodes.some(({ id, state }) => id === nodeId && (state === 'online') === isOnline),
    );
  }

  /** Cuts a node off from everybody, or puts its link back. */
  setLink(nodeId: string, state: 'up' | 'down'): Promise<void> {
    return this.#network.setLink(nodeId, state);
  }

  /** A node's `/metrics`, read inside its namespace: also of one that is cut off. */
  nodeMetrics(nodeId: string): Promise<string> {
    const { netns } = this.#node(nodeId);
    const url = `http://127.0.0.1:${PORTS.metrics}/metrics`;
    return runProgram('ip', ['netns', 'exec', netns, 'curl', '-sS', '--fail', '--max-time', '10', url]);
  }

  override logTails(): string {
    return [this.#control, ...this.#nodes]
      .filter(({ starts }) => starts > 0)
      .map((process) => `--- ${process.name}\n${tail(fs.readFileSync(logPath(process, this.dir), 'utf8'))}`)
      .join('\n');
  }

  async close(): Promise<void> {
    await Promise.all(this.#nodes.map(({ child }) => child?.stop(STOP_MS_MAX)));
    await this.#control.child?.stop(STOP_MS_MAX);
    await this.#network.remove();
    if (this.#isMounted) await runProgram('umount', [this.dir]);
    this.#isMounted = false;
    fs.rmSync(this.dir, { recursive: true, force: true });
    fs.rmSync(diskPath(this.dir), { force: true });
  }

  async #mount(): Promise<void> {
    fs.writeFileSync(diskPath(this.dir), '');
    fs.truncateSync(diskPath(this.dir), DISK_BYTES);
    await runProgram('mkfs.xfs', ['-q', diskPath(this.dir)]);
    await runProgram('mount', ['-o', 'loop', diskPath(this.dir), this.dir]);
    this.#isMounted = true;
  }

  async #add(nodeId: string): Promise<void> {
    const { netns, address } = await this.#network.add(nodeId);
    const nbd = `${address}:${PORTS.nbd}`;
    const parameters = [
      ...['--id', nodeId, '--data-dir', join(this.dir, nodeId), '--json', '--control', this.grpc],
      ...['--host', '0.0.0.0', '--nbd-port', `${PORTS.nbd}`, '--advertise', nbd],
      ...['--metrics-port', `${PORTS.metrics}`],
    ];
    this.#nodes.push({
      ...member(nodeId, [
        findProgram('ip'),
        ...['netns', 'exec', netns, process.execPath, programPath('node'), ...parameters],
      ]),
      nbd,
      metrics: `http://${address}:${PORTS.metrics}`,
      netns,
    });
  }

  #member(name: string): Member {
    return name === CONTROL ? this.#control : this.#node(name);
  }

  #node(nodeId: string): NodeMember {
    const found = this.#nodes.find(({ name }) => name === nodeId);
    if (found === undefined) throw new RangeError(`no node ${nodeId}`);
    return found;
  }
}

function member(name: string, command: [string, ...string[]]): Member {
  return { name, command, child: null, starts: 0 };
}

/** Each run has a log of its own. */
function logPath({ name, starts }: Member, dir: string): string {
  return join(dir, 'log', `${name}-${starts}.log`);
}

/** Beside the directory, as it is mounted there. */
function diskPath(dir: string): string {
  return `${dir}.disk`;
}

async function start(started: Member, dir: string): Promise<void> {
  const { name, command } = started;
  started.starts++;
  const child = new Child({ name, command, logPath: logPath(started, dir) });
  started.child = child;
  const end = await Promise.race([child.ready, child.exited]);
  if (end !== undefined) throw new BlockwireError('BW_INTERNAL', `${name} does not start:\n${child.tail()}`);
}

/** Removes what killed processes left: mounts, directories, networks that carry a dead process's id. */
async function sweep(): Promise<void> {
  const isStale = (name: string): boolean => {
    const pid = new RegExp(`^${PREFIX}(\\d+)-\\d+`).exec(name)?.[1];
    return pid !== undefined && !fs.existsSync(`/proc/${pid}`);
  };
  await sweepLabNetworks(isStale);
  for (const name of fs.readdirSync(os.tmpdir()).filter(isStale)) {
    const path = join(os.tmpdir(), name);
    await runProgram('umount', [path]).catch(() => {});
    fs.rmSync(path, { recursive: true, force: true });
  }
}
