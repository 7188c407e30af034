/** From the options of `up` to ids, ports and command lines; starts nothing. */
import { join } from 'node:path';
import { programPath } from '../processes.ts';
import type { Layout } from './layout.ts';
import { hostPort, localHost, PortChooser } from './ports.ts';

export const REST_PORT_DEFAULT = 7400;
const NBD_PORT_FIRST = 10809;
const NODE_METRICS_PORT_FIRST = 7411;
const AGENT_METRICS_PORT = 7421;

export interface UpOptions {
  /** Absolute path of the cluster's directory. */
  readonly dir: string;
  readonly nodes: number;
  readonly agent: boolean;
  /** Address that every process listens on. */
  readonly host: string;
  /** Address at which agents reach the nodes. */
  readonly advertiseHost: string;
  /** null: as last time, else the default. 0: any free port. */
  readonly restPort: number | null;
  readonly grpcPort: number | null;
}

/** Chooses ports: those of the last run where they are free, then the documented ones, then any. */
export async function chooseLayout(options: UpOptions, saved: Layout | null): Promise<Layout> {
  const ports = new PortChooser(options.host);
  const restPort = await ports.choose({
    purpose: '--rest-port',
    wanted: options.restPort ?? saved?.restPort ?? REST_PORT_DEFAULT,
    preferred: [],
  });
  const grpcPort = await ports.choose({
    purpose: '--grpc-port',
    wanted: options.grpcPort,
    preferred: present(saved?.grpcPort, restPort < 65535 ? restPort + 1 : undefined),
  });
  const nodes = [];
  for (let index = 0; index < options.nodes; index++) {
    const old = saved?.nodes[index];
    const any = { purpose: '--host', wanted: null };
    nodes.push({
      id: old?.id ?? `node-${index + 1}`,
      nbdPort: await ports.choose({ ...any, preferred: present(old?.nbdPort, NBD_PORT_FIRST + index) }),
      metricsPort: await ports.choose({
        ...any,
        preferred: present(old?.metricsPort, NODE_METRICS_PORT_FIRST + index),
      }),
    });
  }
  const agent = options.agent
    ? {
        id: saved?.agent?.id ?? 'agent-1',
        metricsPort: await ports.choose({
          purpose: '--host',
          wanted: null,
          preferred: present(saved?.agent?.metricsPort, AGENT_METRICS_PORT),
        }),
      }
    : null;
  return { restPort, grpcPort, nodes, agent };
}

/** What to remember: this run's layout, and what an earlier one had and this one does not start. */
export function mergeLayouts(saved: Layout | null, current: Layout): Layout {
  return {
    ...current,
    nodes: [...current.nodes, ...(saved?.nodes.slice(current.nodes.length) ?? [])],
    agent: current.agent ?? saved?.agent ?? null,
  };
}

export interface PlannedProcess {
  readonly name: string;
  readonly command: readonly [string, ...string[]];
}

export interface Plan {
  /** REST address for this machine. */
  readonly rest: string;
  readonly grpc: string;
  readonly control: PlannedProcess;
  readonly nodes: readonly (PlannedProcess & { readonly nbd: string; readonly metrics: string })[];
  readonly agent: (PlannedProcess & { readonly metrics: string }) | null;
}

export function makePlan(options: UpOptions, layout: Layout): Plan {
  const { dir, host, advertiseHost } = options;
  const here = localHost(host);
  const grpc = hostPort(here, layout.grpcPort);
  const common = (name: string): string[] => ['--data-dir', join(dir, name), '--json'];
  const listen = ['--host', host];
  const url = (port: number): string => `http://${hostPort(here, port)}`;
  return {
    rest: url(layout.restPort),
    grpc,
    control: planned('control', 'control', [
      ...common('control'),
      ...listen,
      ...['--rest-port', String(layout.restPort), '--grpc-port', String(layout.grpcPort)],
    ]),
    nodes: layout.nodes.map(({ id, nbdPort, metricsPort }) => {
      const nbd = hostPort(advertiseHost, nbdPort);
      const args = ['--id', id, '--nbd-port', String(nbdPort), '--advertise', nbd, '--control', grpc];
      // Agents may be elsewhere and know this machine by another address; the nodes are all here.
      args.push('--peer-address', hostPort(here, nbdPort));
      return {
        ...planned('node', id, [...common(id), ...listen, ...args, '--metrics-port', String(metricsPort)]),
        nbd,
        metrics: url(metricsPort),
      };
    }),
    agent:
      layout.agent === null
        ? null
        : {
            ...planned('agent', layout.agent.id, [
              ...['--id', layout.agent.id, '--control', grpc, '--json'],
              ...['--metrics-host', host, '--metrics-port', String(layout.agent.metricsPort)],
              ...['--run-dir', join(dir, 'run')],
            ]),
            metrics: url(layout.agent.metricsPort),
          },
  };
}

function planned(role: 'control' | 'node' | 'agent', name: string, args: readonly string[]): PlannedProcess {
  return { name, command: [process.execPath, programPath(role), ...args] };
}

function present(...ports: (number | undefined)[]): number[] {
  return ports.filter((port) => port !== undefined);
}
