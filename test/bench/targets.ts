/** Servers as a device in the guest sees them, wherever they run: on the host, in the guest itself, or in a second guest. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Machine } from '../vm/machine.ts';
import { processTreeUs } from './cpu.ts';
import { EXPORT, fillCommand, type NbdServer, type ServerKind, serverCommand } from './servers.ts';

const START_MS_MAX = 60_000;
const FILL_MS_MAX = 120_000;
const FIRST_PORT = 10_900;

export interface Target {
  readonly host: string;
  readonly port: number;
  readonly exportName: string;
  /** In the guest that is measured; 0 for servers elsewhere. */
  readonly guestPid: number;
  /** CPU time so far of a server elsewhere; null where it is part of the guest's, or not to be had. */
  readonly cpuUs: (() => number) | null;
  /** Throws BW_IO when it is not running any more. */
  check(): void;
}

/** A server on the host, as seen under `host`. */
export function hostTarget(server: NbdServer, host: string): Target {
  const { port, exportName, pid } = server;
  return {
    ...{ host, port, exportName },
    guestPid: 0,
    cpuUs: () => processTreeUs(pid),
    check: () => server.check(),
  };
}

/** Starts NBD servers in memory inside a machine, each with a filled export. They end with the machine. */
export async function startInside(
  machine: Machine,
  options: {
    kind: ServerKind;
    count: number;
    host: string;
    sizeBytes: number;
    /** Whether it is the guest that is measured. */
    own: boolean;
  },
): Promise<Target[]> {
  const targets: Target[] = [];
  for (let index = 0; index < options.count; index++) {
    const { kind, host, sizeBytes, own } = options;
    const port = FIRST_PORT + index;
    const directory = `/dev/shm/bench-${index}`;
    const command = await serverCommand(
      { kind, host, netns: null, sizeBytes, directory, direct: true },
      port,
    );
    const daemon = machine.start(`mkdir -p ${directory}; echo "pid $$"; exec ${command.join(' ')}`);
    let ended: string | null = null;
    daemon.done.then(
      ({ exitCode, output }) => {
        ended = `it ended with ${exitCode}: ${output}`;
      },
      (error: unknown) => {
        ended = String(error);
      },
    );
    const check = (): void => {
      if (ended !== null) throw new BlockwireError('BW_IO', `${kind} inside: ${ended}`);
    };
    const pid = Number((await daemon.waitFor(/^pid (\d+)$/m))[1]);
    const uri = `nbd://${host}:${port}/${EXPORT}`;
    const answers = `for i in $(seq 100); do nbdinfo --size ${uri} && exit; sleep 0.2; done; exit 1`;
    try {
      await machine.check(answers, { timeoutMs: START_MS_MAX });
    } catch (error) {
      check();
      throw error;
    }
    await machine.check(fillCommand(uri).join(' '), { timeoutMs: FILL_MS_MAX });
    const guestPid = own ? pid : 0;
    targets.push({ host, port, exportName: EXPORT, guestPid, cpuUs: null, check });
  }
  return targets;
}

/** Starts the kernel's NVMe/TCP target inside a machine, over RAM disks that are full. */
export async function startNvmeInside(
  machine: Machine,
  options: { count: number; host: string; sizeBytes: number },
): Promise<Target[]> {
  const port = 4420;
  const script = `${import.meta.dirname}/guest/nvme-target.sh`;
  const { host, count, sizeBytes } = options;
  await machine.check(`bash ${script} ${host} ${port} ${sizeBytes / 2 ** 20} ${count}`, {
    timeoutMs: FILL_MS_MAX,
  });
  return Array.from({ length: count }, (_, index) => ({
    ...{ host, port, exportName: `bench${index}` },
    guestPid: 0,
    cpuUs: null,
    check() {},
  }));
}
