/** The devices that can be measured against each other in a guest, by their names in the tables. */
import { BlockwireError } from '@blockwire/shared/errors.ts';

/** What attach.ts is told for each of ours. */
export const OURS = {
  fused: ['--datapath', 'fused'],
  'fused-send': ['--datapath', 'fused', '--send', 'plain'],
  'fused-zc': ['--datapath', 'fused', '--send', 'zc'],
  splice: ['--datapath', 'splice'],
  copy: ['--datapath', 'copy'],
} as const satisfies Record<string, readonly string[]>;

export type DeviceKind = keyof typeof OURS | 'nbd-client' | 'nvme-tcp';

export interface DeviceSpec {
  readonly name: string;
  readonly kind: DeviceKind;
  /** Connections of the kernel's nbd client. */
  readonly connections: number;
  /** Hardware queues of ours. */
  readonly queues: number;
  /** KiB up to which payloads of ours go through own memory; null: as the agent chooses. */
  readonly smallKib: number | null;
  /** Microseconds for which queues of ours poll; null: as the agent does. */
  readonly busyPollUs: number | null;
  /** Replicas of the data; the kernel's devices are mirrored by md. */
  readonly mirrors: number;
}

const NAME = new RegExp(
  `^(${[...Object.keys(OURS).toSorted((a, b) => b.length - a.length), 'nbd-client', 'nvme-tcp'].join('|')})` +
    '(?:-c(\\d+))?(?:-q(\\d+))?(?:-s(\\d+))?(?:-p(\\d+))?(?:-x(\\d+))?$',
);

/** Reads `KIND[-cCONNECTIONS][-qQUEUES][-sKIB][-pUS][-xMIRRORS]`, such as `fused-zc-q2-x2`. Throws BW_INVALID_ARGUMENT. */
export function parseDevice(name: string): DeviceSpec {
  const match = NAME.exec(name);
  if (match === null) {
    const kinds = [...Object.keys(OURS), 'nbd-client', 'nvme-tcp'].join(', ');
    throw new BlockwireError(
      'BW_INVALID_ARGUMENT',
      `no such device: ${name}; one of ${kinds}, then -cN connections (nbd-client), -qN queues, -sN KiB and -pN us (ours), -xN mirrors`,
    );
  }
  const [, kind, connections, queues, smallKib, busyPollUs, mirrors] = match;
  return {
    name,
    kind: kind as DeviceKind,
    connections: Number(connections ?? 1),
    queues: Number(queues ?? 1),
    smallKib: smallKib === undefined ? null : Number(smallKib),
    busyPollUs: busyPollUs === undefined ? null : Number(busyPollUs),
    mirrors: Number(mirrors ?? 1),
  };
}

export function isOurs(kind: DeviceKind): kind is keyof typeof OURS {
  return kind in OURS;
}
