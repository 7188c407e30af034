/** The places of the play: the cluster on this host, the machine that has ublk with the agent in it, and the tree. */
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Agent, type Cluster, UpCluster } from '../e2e/cluster.ts';
import { HostMachine } from '../vm/host.ts';
import { cacheDirectory, ensureKernel } from '../vm/kernel.ts';
import type { Machine } from '../vm/machine.ts';
import { Vm } from '../vm/vm.ts';
import type { Console } from './console.ts';
import type { Resources } from './resources.ts';
import { chooseFolders, describeTree, type Extent, measure, type Tree, type TreeRoot } from './tree.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const TREE_MIN: Extent = { sizeBytes: 200e6, fileCount: 1000 };
const VM_MEMORY_MIB = 2048;

export interface Stage {
  readonly machine: Machine;
  readonly cluster: Cluster;
  readonly agent: Agent;
  readonly tree: Tree;
  /** `sha256sum` lines and the list of files, as the machine sees them. */
  readonly checksumsPath: string;
  readonly listingPath: string;
  /** The `blockwire` command against this cluster, its answer parsed. */
  readonly blockwire: (...parameters: string[]) => Promise<unknown>;
}

/** Everything that runs before the first volume is made. */
export async function setStage(console: Console, resources: Resources): Promise<Stage> {
  const onHost = wantsHost();
  console.step(onHost ? 'this host has ublk: everything runs here' : 'this host has no ublk: booting the VM');
  const machine = await resources.hold<Machine>(() =>
    onHost
      ? HostMachine.start(ROOT)
      : Vm.bootGuest({
          memoryMiB: VM_MEMORY_MIB,
          onProgress: (message) => console.step(`  ${message}`),
        }),
  );
  console.step(`Linux ${machine.kernelRelease} is ready; starting a control plane and two storage nodes`);
  const cluster = await resources.hold(() =>
    UpCluster.start({ advertiseHost: machine.hostAddress, name: 'blockwire-quickstart' }),
  );
  console.step(`${cluster.nodes.map(({ id }) => id).join(', ')} registered; starting the agent`);
  const starting = Agent.start(machine, cluster);
  starting.catch(() => {});
  // Digesting occupies this thread; the agent starts meanwhile in the machine.
  const tree = describeTree(await treeRoots(machine));
  writeFileSync(join(machine.sharedHostPath, 'checksums'), tree.checksums);
  writeFileSync(join(machine.sharedHostPath, 'listing'), tree.listing);
  return {
    machine,
    cluster,
    agent: await starting,
    tree,
    checksumsPath: `${machine.sharedPath}/checksums`,
    listingPath: `${machine.sharedPath}/listing`,
    blockwire: (...parameters) => blockwire(cluster.rest.url, parameters),
  };
}

/** BLOCKWIRE_VM=host or =vm decides; otherwise the host where it has ublk. */
function wantsHost(): boolean {
  const asked = process.env.BLOCKWIRE_VM;
  return asked === 'host' || (asked !== 'vm' && existsSync('/dev/ublk-control'));
}

/** The largest packages of node_modules, and the kernel's modules where those are not enough. */
async function treeRoots(machine: Machine): Promise<TreeRoot[]> {
  const packages = join(ROOT, 'node_modules');
  const modulesInside = `/lib/modules/${machine.kernelRelease}`;
  const modulesOutside =
    machine.kind === 'host' ? modulesInside : (await ensureKernel(cacheDirectory())).modulesPath;
  const extents = new Map<string, Extent>();
  for (const entry of readdirSync(packages, { withFileTypes: true })) {
    const folder = join(packages, entry.name);
    if (entry.isDirectory()) extents.set(folder, measure(folder));
  }
  let choice = chooseFolders(extents, TREE_MIN);
  if (!choice.enough && existsSync(modulesOutside)) {
    extents.set(modulesOutside, measure(modulesOutside));
    choice = chooseFolders(extents, TREE_MIN);
  }
  if (!choice.enough) {
    throw new BlockwireError('BW_UNSUPPORTED_HOST', `${packages} has too few files to copy`);
  }
  return choice.folders.map((outside) => ({
    outside,
    inside: outside === modulesOutside ? modulesInside : outside,
  }));
}

async function blockwire(rest: string, parameters: readonly string[]): Promise<unknown> {
  const launcher = join(ROOT, 'services/cli/blockwire.mjs');
  const { stdout } = await promisify(execFile)(process.execPath, [
    launcher,
    '--rest',
    rest,
    '--json',
    ...parameters,
  ]);
  return JSON.parse(stdout) as unknown;
}
