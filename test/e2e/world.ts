/** What an end-to-end test stands on: a machine with ublk, a cluster on this host, the agent inside the machine. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Machine } from '../vm/machine.ts';
import { Vm } from '../vm/vm.ts';
import { Agent, type AgentOptions, Cluster, metric } from './cluster.ts';
import type { Attachment, Rest, Volume } from './rest.ts';

const MEMORY_MIB = 2048;
const SHELL_MS_MAX = 5 * 60_000;
const WAIT_MS_MAX = 60_000;
export const MIB = 2 ** 20;

export interface WorldOptions {
  readonly nodes?: number;
  /** Of the machine; default 2. */
  readonly cpus?: number;
  readonly agent?: AgentOptions;
}

export class World {
  readonly machine: Machine;
  readonly cluster: Cluster;
  readonly #agentOptions: AgentOptions;
  #agent: Agent;

  static async start({ nodes = 2, cpus, agent = {} }: WorldOptions = {}): Promise<World> {
    const machine = await Vm.boot({ memoryMiB: MEMORY_MIB, cpus });
    let cluster: Cluster | null = null;
    try {
      cluster = await Cluster.start({ advertiseHost: machine.hostAddress, name: 'blockwire-e2e', nodes });
      return new World(machine, cluster, await Agent.start(machine, cluster, agent), agent);
    } catch (error) {
      await cluster?.close();
      await machine.close();
      throw error;
    }
  }

  private constructor(machine: Machine, cluster: Cluster, agent: Agent, agentOptions: AgentOptions) {
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

  /** A series of a node's `/metrics`; NaN if it is not there. */
  async nodeMetric(nodeId: string, name: string): Promise<number> {
    const response = await fetch(`${this.cluster.node(nodeId).metrics}/metrics`);
    return metric(await response.text(), name);
  }

  async agentMetric(name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
    return metric(await this.agent.get('/metrics'), name, labels);
  }

  /** The digest of a volume's bytes on each of its nodes. */
  replicaDigests({ id, replicas }: Volume): Promise<string[]> {
    return Promise.all(replicas.map(({ node }) => digest(this.cluster.dataFile(node, id))));
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

/** fio over a device with mixed block sizes from 4 to 64 KiB, every byte read back and verified. */
export function fioVerify(device: string, options: { sizeBytes: number; direction?: string }): string {
  const { sizeBytes, direction = 'randwrite' } = options;
  return [
    `fio --name=verify --filename=${device} --rw=${direction} --bsrange=4k-64k --size=${sizeBytes}`,
    '--direct=1 --ioengine=libaio --iodepth=32 --randrepeat=0',
    '--verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0',
  ].join(' ');
}

/** Asks again until it is so. Throws BW_TIMEOUT with the last answer. */
export async function eventually<T>(ask: () => Promise<T>, isSo: (answer: T) => boolean): Promise<T> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  for (;;) {
    const answer = await ask();
    if (isSo(answer)) return answer;
    if (performance.now() > deadlineMs) {
      throw new BlockwireError('BW_TIMEOUT', `still ${JSON.stringify(answer)}`);
    }
    await sleep(100);
  }
}

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: MIB }), hash);
  return hash.digest('hex');
}
