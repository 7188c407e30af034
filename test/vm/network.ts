/**
 * The VM's two networks. Slirp needs no set-up and reaches the host's loopback. TAP lives in a network namespace
 * made for one VM, has checksum and segmentation offload, and so shows what zero copy really does.
 */
import * as fs from 'node:fs/promises';
import { runProgram } from './programs.ts';

export type NetworkKind = 'slirp' | 'tap';

export interface Network {
  readonly qemuArgs: readonly string[];
  /** Guest address with prefix length. */
  readonly address: string;
  /** The host as the guest sees it; also its default gateway. */
  readonly hostAddress: string;
  readonly netns: string | null;
  remove(): Promise<void>;
}

/** romfile= : without it qemu wants a boot ROM that Debian keeps in another package. */
const DEVICE = 'virtio-net-pci,netdev=net0,romfile=';

/** Ports inside that the host reaches at its loopback, host port by guest port. */
export type Forwards = Readonly<Record<number, number>>;

export function slirpNetwork(forwards: Forwards = {}): Network {
  const rules = Object.entries(forwards).map(([host, guest]) => `,hostfwd=tcp:127.0.0.1:${host}-:${guest}`);
  return {
    qemuArgs: ['-netdev', `user,id=net0${rules.join('')}`, '-device', DEVICE],
    address: '10.0.2.15/24',
    hostAddress: '10.0.2.2',
    netns: null,
    remove: async () => {},
  };
}

/** Makes the namespace `name` with a tap device in it. Needs root. */
export async function tapNetwork(name: string): Promise<Network> {
  const ip = (...args: string[]) => runProgram('ip', args);
  await ip('netns', 'add', name);
  const remove = async () => {
    await ip('netns', 'del', name).catch(() => {});
  };
  try {
    await ip('-n', name, 'link', 'set', 'lo', 'up');
    await ip('-n', name, 'tuntap', 'add', 'tap0', 'mode', 'tap', 'vnet_hdr');
    await ip('-n', name, 'addr', 'add', '10.77.0.1/24', 'dev', 'tap0');
    await ip('-n', name, 'link', 'set', 'tap0', 'up');
  } catch (error) {
    await remove();
    throw error;
  }
  return {
    qemuArgs: ['-netdev', 'tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=off', '-device', DEVICE],
    // Namespaces keep several VMs apart, so that all may use the same addresses.
    address: '10.77.0.2/24',
    hostAddress: '10.77.0.1',
    netns: name,
    remove,
  };
}

/**
 * A second tap device in the namespace of another VM's network, and a route between the two guests. The namespace
 * goes with that VM; only one such network at a time.
 */
export async function peerNetwork(name: string): Promise<Network> {
  const ip = (...args: string[]) => runProgram('ip', args);
  await ip('-n', name, 'tuntap', 'add', 'tap1', 'mode', 'tap', 'vnet_hdr');
  const remove = async () => {
    await ip('-n', name, 'link', 'del', 'tap1').catch(() => {});
  };
  try {
    await ip('-n', name, 'addr', 'add', '10.77.1.1/24', 'dev', 'tap1');
    await ip('-n', name, 'link', 'set', 'tap1', 'up');
    await ip('netns', 'exec', name, 'sh', '-c', 'echo 1 > /proc/sys/net/ipv4/ip_forward');
  } catch (error) {
    await remove();
    throw error;
  }
  return {
    qemuArgs: ['-netdev', 'tap,id=net0,ifname=tap1,script=no,downscript=no,vhost=off', '-device', DEVICE],
    address: '10.77.1.2/24',
    hostAddress: '10.77.1.1',
    netns: name,
    remove,
  };
}

/** Names that start with `prefix` and the id of a process that is gone: left by one that was killed. */
export async function sweepNetworks(isStale: (name: string) => boolean): Promise<void> {
  const names = await fs.readdir('/run/netns').catch(() => []);
  for (const name of names.filter(isStale)) await runProgram('ip', ['netns', 'del', name]).catch(() => {});
}
