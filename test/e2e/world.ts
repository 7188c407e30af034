/** What an end-to-end test stands on: a machine with ublk, a cluster on this host, the agent inside the machine. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Machine } from '../vm/machine.ts';
import { Vm } from '../vm/vm.ts';
import { Agent, type AgentOptions, type Cluster, metric, UpCluster } from './cluster.ts';
import { LabCluster, type LabOptions } from './lab.ts';
import type { Attachment, Rest, Volume } from './rest.ts';
import { eventually } from './wait.ts';

const MEMORY_MIB = 2048;
const SHELL_MS_MAX = 5 * 60_000;
const IN_SYNC_MS_MAX = 180_000;
export const MIB = 2 ** 20;
export { eventually } from './wait.ts';

interface MachineOptions {
  /** Of the machine; default 2. */
  readonly cpus?: number;
  readonly agent?: AgentOptions;
}

/**
 * An emulated machine and the nodes share the host's processors, and may keep each other waiting for longer than an agent's
 * own default. What falls silent on purpose says its own time.
 */
export const REPLICA_TIMEOUT_MS = 10_000;

export interface WorldOptions extends MachineOptions {
  /** Default 2. */
  readonly nodes?: number;
}

export interface LabWorldOptions extends MachineOptions {
  readonly lab?: LabOptions;
}

export class World<C extends Cluster = Cluster> {
  readonly machine: Machine;
  readonly cluster: C;
  readonly #agentOptions: AgentOptions;
  #agent: Agent;

  /** With the cluster that `blockwire up` makes. */
  static start({ nodes, agent, ...options }: WorldOptions = {}): Promise<World> {
    const name = 'blockwire-e2e';
    const patient = { ...options, agent: { replicaTimeoutMs: REPLICA_TIMEOUT_MS, ...agent } };
    return World.#start(patient, ({ hostAddress }) =>
      UpCluster.start({ advertiseHost: hostAddress, name, ...(nodes === undefined ? {} : { nodes }) }),
    );
  }

  /** With a cluster whose processes and links can be taken down and put back. */
  static startLab({ lab, ...options }: LabWorldOptions = {}): Promise<World<LabCluster>> {
    return World.#start(options, () => LabCluster.start(lab));
  }

  static async #start<C extends Cluster>(
    { cpus, agent = {} }: MachineOptions,
    startCluster: (machine: Machine) => Promise<C>,
  ): Promise<World<C>> {
    const machine = await Vm.boot({ memoryMiB: MEMORY_MIB, cpus });
    let cluster: C | null = null;
    try {
      cluster = await startCluster(machine);
      return new World(machine, cluster, await Agent.start(machine, cluster, agent), agent);
    } catch (error) {
      await cluster?.close();
      await machine.close();
      throw error;
    }
  }

  private constructor(machine: Machine, cluster: C, agent: Agent, agentOptions: AgentOptions) {
    this.machine = machine;
    this.cluster = cluster;
    this.#agent = agent;
    this.#agentOptions = agentOptions;
  }

  get rest(): Rest {
    return this.cluster.rest;
  }

  get agent(): Agent {
    return this.#agent;
  }

  /** A bash command inside. Throws BW_IO with its output unless it ends with 0. */
  shell(command: string): Promise<string> {
    return this.machine.check(command, { timeoutMs: SHELL_MS_MAX });
  }

  /** A volume and its device. */
  async attachNew(name: string, sizeBytes: number, datapath = 'auto'): Promise<[Volume, Attachment]> {
    const volume = await this.rest.createVolume({ name, sizeBytes, replicas: 2 });
    return [volume, await this.rest.attach({ volume: volume.id, datapath })];
  }

  /** After the agent's end. */
  async restartAgent(options: AgentOptions = {}): Promise<void> {
    this.#agent = await Agent.start(this.machine, this.cluster, { ...this.#agentOptions, ...options });
  }

  /** Starts an agent and kills it after so long, ready or not. */
  async startAndKill(afterMs: number): Promise<void> {
    const started = Agent.start(this.machine, this.cluster, { ...this.#agentOptions, killAfterMs: afterMs });
    // It may have got ready in time.
    const agent = await started.catch(() => null);
    await agent?.process.done;
  }

  /** Starts another agent that takes over from the one that runs; resolves with the old one's exit code. */
  async handOver(): Promise<number> {
    const old = this.#agent;
    await this.restartAgent({ handover: true });
    return (await old.process.done).exitCode;
  }

  /**
   * Resolves when every replica of these volumes is in sync. Throws BW_TIMEOUT with the processes' logs.
   * @param meanwhile called now and then; what it throws ends the waiting
   */
  async inSync(volumes: readonly Pick<Volume, 'id'>[], meanwhile = (): void => {}): Promise<void> {
    const ask = (): Promise<Volume[]> => {
      meanwhile();
      return Promise.all(volumes.map(({ id }) => this.rest.volume(id)));
    };
    try {
      await eventually(ask, (now) => now.every(({ degraded }) => !degraded), IN_SYNC_MS_MAX);
    } catch (error) {
      const { code, message } = toBlockwireError(error);
      throw new BlockwireError(code, `${message}\n${this.describe()}`, { cause: error });
    }
  }

  /** A series of a node's `/metrics`; NaN if it is not there. */
  async nodeMetric(nodeId: string, name: string): Promise<number> {
    const response = await fetch(`${this.cluster.node(nodeId).metrics}/metrics`);
    return metric(await response.text(), name);
  }

  async controlMetric(name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
    const response = await fetch(`${this.rest.url}/metrics`);
    return metric(await response.text(), name, labels);
  }

  async agentMetric(name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
    return metric(await this.agent.get('/metrics'), name, labels);
  }

  /** The digest of a volume's bytes, or of a snapshot's, on each of its nodes. */
  replicaDigests({ id, replicas }: Volume, snapshot?: string): Promise<string[]> {
    return Promise.all(replicas.map(({ node }) => digest(this.cluster.dataFile(node, id, snapshot))));
  }

  /** For a failed test: what the processes said last. */
  describe(): string {
    return `${this.cluster.logTails()}\n--- agent\n${this.agent.logTail()}`;
  }

  async close(): Promise<void> {
    await this.machine.close();
    await this.cluster.close();
  }
}

/** Its processes and links can be taken down and put back. */
export type LabWorld = World<LabCluster>;

/** fio over a device with mixed block sizes from 4 to 64 KiB, every byte read back and verified. */
export function fioVerify(device: string, options: { sizeBytes: number; direction?: string }): string {
  const { sizeBytes, direction = 'randwrite' } = options;
  return [
    `fio --name=verify --filename=${device} --rw=${direction} --bsrange=4k-64k --size=${sizeBytes}`,
    '--direct=1 --ioengine=libaio --iodepth=32 --randrepeat=0',
    '--verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0',
  ].join(' ');
}

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: MIB }), hash);
  return hash.digest('hex');
}
