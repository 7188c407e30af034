/**
 * What this host's kernel offers, tried out rather than guessed from its version: ublk's feature bits, and which operations
 * move a registered buffer over a socket. Before a device exists.
 */
import { Ring } from '@blockwire/native/ring.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { ublkFeatures, ublkPresent } from '../ublk/control.ts';
import { UblkFeature } from '../ublk/uapi.ts';
import { DATAPATHS, type Datapath } from './messages.ts';
import { probeSockets, SOCKET_RUNGS, type SocketReport } from './probe-sockets.ts';

export interface ModeReport {
  readonly mode: Datapath;
  readonly available: boolean;
  /** What the kernel lacks for this mode; empty if it is available. */
  readonly missing: readonly string[];
}

export const RUNGS = [...SOCKET_RUNGS, 'autoBuffers', 'manualBuffers', 'userCopy'] as const;
export type Rung = (typeof RUNGS)[number];

const RUNG_NAMES: Readonly<Record<Rung, string>> = {
  send: 'io_uring SEND of registered buffers (Linux 7.2)',
  sendZc: 'io_uring SEND_ZC of registered buffers (Linux 6.0)',
  recv: 'io_uring RECV into registered buffers (Linux 7.2)',
  readFixed: 'io_uring READ_FIXED from a socket',
  autoBuffers: 'ublk AUTO_BUF_REG (Linux 6.16)',
  manualBuffers: 'ublk SUPPORT_ZERO_COPY (Linux 6.15)',
  userCopy: 'ublk USER_COPY (Linux 6.5)',
};

/** One step of the ladder inside `fused`. */
export interface RungReport {
  readonly rung: Rung;
  readonly name: string;
  readonly available: boolean;
  /** Why not; empty if it is available. */
  readonly reason: string;
}

export interface HostProbe {
  readonly ublk: boolean;
  /** Low 32 bits of UBLK_F_*. */
  readonly features: number;
  /** Why io_uring cannot be used, or null. */
  readonly ioUring: string | null;
  /** Best mode first. */
  readonly modes: readonly ModeReport[];
  readonly rungs: readonly RungReport[];
}

function probeRing(): string | null {
  try {
    new Ring({ entries: 8 }).close();
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function reportRungs(features: number, sockets: SocketReport | null): RungReport[] {
  const feature = (bit: number): string | null => ((features & bit) !== 0 ? null : 'not offered');
  const failures: Record<Rung, string | null> = {
    ...(sockets ?? {
      send: 'no io_uring',
      sendZc: 'no io_uring',
      recv: 'no io_uring',
      readFixed: 'no io_uring',
    }),
    autoBuffers: feature(UblkFeature.AUTO_BUF_REG),
    manualBuffers: feature(UblkFeature.SUPPORT_ZERO_COPY),
    userCopy: feature(UblkFeature.USER_COPY),
  };
  return RUNGS.map((rung) => ({
    rung,
    name: RUNG_NAMES[rung],
    available: failures[rung] === null,
    reason: failures[rung] ?? '',
  }));
}

/** Tries everything out; changes nothing on the host. */
export async function probeHost(): Promise<HostProbe> {
  const ioUring = probeRing();
  const ublk = ublkPresent();
  const features = ublk ? await ublkFeatures() : 0;
  const rungs = reportRungs(features, ioUring === null ? probeSockets() : null);
  const base: string[] = [];
  if (ioUring !== null) base.push(`io_uring with DEFER_TASKRUN (${ioUring})`);
  if (!ublk) base.push('ublk (module ublk_drv)');
  return {
    ublk,
    features,
    ioUring,
    modes: DATAPATHS.map((mode) => {
      const missing = base.length > 0 ? base : missingFor(mode, rungs);
      return { mode, available: missing.length === 0, missing };
    }),
    rungs,
  };
}

/** What of the ladder a mode cannot do without. */
export function missingFor(mode: Datapath, rungs: readonly RungReport[]): string[] {
  const lacks = (...alternatives: Rung[]): string[] => {
    const reports = rungs.filter(({ rung }) => alternatives.includes(rung));
    if (reports.some(({ available }) => available)) return [];
    return [reports.map(({ name, reason }) => `${name} (${reason})`).join(' or ')];
  };
  switch (mode) {
    case 'fused':
      return [...lacks('manualBuffers'), ...lacks('send', 'sendZc'), ...lacks('recv', 'readFixed')];
    case 'splice':
      return lacks('userCopy');
    case 'copy':
      return [];
  }
}

function isDatapath(text: string): text is Datapath {
  return (DATAPATHS as readonly string[]).includes(text);
}

/** The mode to use: the best available for `auto`, or the one asked for. Throws BW_DATAPATH_UNAVAILABLE. */
export function chooseDatapath(probe: HostProbe, asked: string): Datapath {
  if (asked !== 'auto' && !isDatapath(asked)) {
    const known = ['auto', ...DATAPATHS].join(', ');
    throw new BlockwireError('BW_INVALID_ARGUMENT', `datapath '${asked}' is none of ${known}`);
  }
  const candidates = probe.modes.filter(({ mode }) => asked === 'auto' || mode === asked);
  const chosen = candidates.find(({ available }) => available);
  if (chosen !== undefined) return chosen.mode;
  const missing = candidates
    .map(({ mode, missing: lacks }) => `${mode} needs ${lacks.join(', ')}`)
    .join('; ');
  throw new BlockwireError('BW_DATAPATH_UNAVAILABLE', `this host's kernel cannot do that: ${missing}`);
}
