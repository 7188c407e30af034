/**
 * A network of its own for the processes of a cluster: a bridge on this host, and for each storage node a network
 * namespace whose only link is a veth to that bridge. A link that is set down is a partition on a real network stack:
 * no packet, no reset, no end of file. The machine on slirp reaches the nodes through this host.
 *
 *   this host ── bridge 10.78.N.1 ─┬─ veth ── 10.78.N.11 node-1
 *   (control plane, the machine)   └─ veth ── 10.78.N.12 node-2 …
 */
import * as fs from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { sweepNetworks } from '../vm/network.ts';
import { runProgram } from '../vm/programs.ts';

/** With a process id and two counters it just fits into the 15 characters of an interface's name. */
const BRIDGE_PREFIX = 'bwl';
const NODE_ADDRESS_FIRST = 11;

const ip = (...parameters: string[]): Promise<string> => runProgram('ip', parameters);

export class LabNetwork {
  /** Where the control plane listens. */
  readonly hostAddress: string;
  readonly #name: string;
  readonly #bridge: string;
  readonly #subnet: string;
  readonly #nodes: string[] = [];

  /**
   * @param name unique to this process; starts the names of its namespaces
   * @param count tells this network from the process's others, 1..9
   */
  static async create(name: string, count: number): Promise<LabNetwork> {
    const network = new LabNetwork(name, count, freeSubnet());
    try {
      await ip('link', 'add', network.#bridge, 'type', 'bridge');
      await ip('addr', 'add', `${network.hostAddress}/24`, 'dev', network.#bridge);
      await ip('link', 'set', network.#bridge, 'up');
      return network;
    } catch (error) {
      await network.remove();
      throw error;
    }
  }

  private constructor(name: string, count: number, subnet: string) {
    this.#name = name;
    this.#bridge = `${BRIDGE_PREFIX}${process.pid}-${count}`;
    this.#subnet = subnet;
    this.hostAddress = `${subnet}.1`;
  }

  /** Gives a node its namespace. */
  async add(nodeId: string): Promise<{ readonly netns: string; readonly address: string }> {
    const netns = `${this.#name}-${nodeId}`;
    const address = `${this.#subnet}.${NODE_ADDRESS_FIRST + this.#nodes.length}`;
    this.#nodes.push(nodeId);
    const link = this.#link(nodeId);
    await ip('netns', 'add', netns);
    await ip('link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', netns);
    await ip('link', 'set', link, 'master', this.#bridge, 'up');
    await ip('-n', netns, 'addr', 'add', `${address}/24`, 'dev', 'eth0');
    await ip('-n', netns, 'link', 'set', 'eth0', 'up');
    await ip('-n', netns, 'link', 'set', 'lo', 'up');
    return { netns, address };
  }

  /** Drops a node's link, or puts it back. */
  async setLink(nodeId: string, state: 'up' | 'down'): Promise<void> {
    await ip('link', 'set', this.#link(nodeId), state);
  }

  /** Idempotent. */
  async remove(): Promise<void> {
    for (const nodeId of this.#nodes.splice(0)) {
      await ip('netns', 'del', `${this.#name}-${nodeId}`).catch(() => {});
    }
    await ip('link', 'del', this.#bridge).catch(() => {});
  }

  #link(nodeId: string): string {
    return `${this.#bridge}-${this.#nodes.indexOf(nodeId) + 1}`;
  }
}

/** Removes what killed processes left. `isStale` tells of a namespace's name. */
export async function sweepLabNetworks(isStale: (name: string) => boolean): Promise<void> {
  await sweepNetworks(isStale);
  for (const name of await fs.readdir('/sys/class/net')) {
    const pid = new RegExp(`^${BRIDGE_PREFIX}(\\d+)-\\d$`).exec(name)?.[1];
    if (pid === undefined) continue;
    const isAlive = await fs.access(`/proc/${pid}`).then(
      () => true,
      () => false,
    );
    if (!isAlive) await ip('link', 'del', name).catch(() => {});
  }
}

function freeSubnet(): string {
  const taken = new Set(
    Object.values(networkInterfaces()).flatMap((addresses) =>
      (addresses ?? []).map(({ address }) => address.slice(0, address.lastIndexOf('.'))),
    ),
  );
  for (let third = 0; third < 256; third++) {
    const subnet = `10.78.${third}`;
    if (!taken.has(subnet)) return subnet;
  }
  throw new BlockwireError('BW_CONFLICT', 'every network of 10.78.0.0/16 is taken on this host');
}
