/**
 * What this host's kernel offers, tried out rather than guessed from its version: ublk's feature bits, and whether a
 * registered buffer can be sent and received on a socket. Before a device exists: an older kernel says EINVAL to the
 * latter only in mid-stream.
 */
import { allocateRegion } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import { type CompletionHandler, Ring } from '@blockwire/native/ring.ts';
import { IoringOp, IoringRecvsend, MSG_WAITALL } from '@blockwire/native/uapi/io-uring.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { ublkFeatures, ublkPresent } from '../ublk/control.ts';
import { UblkFeature } from '../ublk/uapi.ts';
import type { Datapath } from './messages.ts';

const PROBE_BYTES = 4096;
const BUFFER_INDEX = 0;

export interface ModeReport {
  readonly mode: Datapath;
  readonly available: boolean;
  /** What the kernel lacks for this mode; empty if it is available. */
  readonly missing: readonly string[];
}

export interface HostProbe {
  readonly ublk: boolean;
  /** Low 32 bits of UBLK_F_*. */
  readonly features: number;
  /** Why io_uring cannot be used, or null. */
  readonly ioUring: string | null;
  /** Best mode first. */
  readonly modes: readonly ModeReport[];
}

class Results implements CompletionHandler {
  readonly byOperation = new Map<number, number>();

  complete(operation: number, _data: number, result: number): void {
    this.byOperation.set(operation, result);
  }
}

/** Sends a registered buffer over a socket pair and receives it into another; null if that works, else why not. */
function probeRegisteredSockets(): string | null {
  let ring: Ring;
  try {
    ring = new Ring({ entries: 8 });
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  const [left, right] = native.socketPair();
  const region = allocateRegion(2 * PROBE_BYTES);
  try {
    ring.registerSparseBuffers(1);
    ring.registerBuffer(BUFFER_INDEX, region.address, 2 * PROBE_BYTES);
    const results = new Results();
    const id = ring.addHandler(results);
    const fixed = IoringRecvsend.FIXED_BUF;
    region.bytes.fill(0x42, 0, PROBE_BYTES);
    // One after the other: a receive that waits could not be told from one that fails.
    for (const [operation, opcode] of [IoringOp.SEND, IoringOp.RECV].entries()) {
      const fd = operation === 0 ? left : right;
      const address = region.address + operation * PROBE_BYTES;
      const at = ring.prepare(opcode, 0, fixed, fd, 0, address, PROBE_BYTES, MSG_WAITALL, id, operation, 0);
      ring.sqes[at + 10] = BUFFER_INDEX;
      ring.enter(1, 1000);
      ring.dispatch();
      if (results.byOperation.get(operation) !== PROBE_BYTES) {
        return `io_uring ${operation === 0 ? 'SEND' : 'RECV'} of registered buffers (Linux 7.2)`;
      }
    }
    return region.bytes[2 * PROBE_BYTES - 1] === 0x42
      ? null
      : 'io_uring RECV into registered buffers (Linux 7.2)';
  } finally {
    ring.close();
    native.close(left);
    native.close(right);
  }
}

function probeRing(): string | null {
  try {
    new Ring({ entries: 8 }).close();
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Tries everything out; changes nothing on the host. */
export async function probeHost(): Promise<HostProbe> {
  const ioUring = probeRing();
  const ublk = ublkPresent();
  const features = ublk ? await ublkFeatures() : 0;
  const base: string[] = [];
  if (ioUring !== null) base.push(`io_uring with DEFER_TASKRUN (${ioUring})`);
  if (!ublk) base.push('ublk (module ublk_drv)');
  const fused = [...base];
  if (base.length === 0) {
    if ((features & UblkFeature.SUPPORT_ZERO_COPY) === 0) fused.push('ublk SUPPORT_ZERO_COPY');
    if ((features & UblkFeature.AUTO_BUF_REG) === 0) fused.push('ublk AUTO_BUF_REG (Linux 6.16)');
    const sockets = probeRegisteredSockets();
    if (sockets !== null) fused.push(sockets);
  }
  return {
    ublk,
    features,
    ioUring,
    modes: [
      { mode: 'fused', available: fused.length === 0, missing: fused },
      { mode: 'copy', available: base.length === 0, missing: base },
    ],
  };
}

/** The mode to use: the best available for `auto`, or the one asked for. Throws BW_DATAPATH_UNAVAILABLE. */
export function chooseDatapath(probe: HostProbe, asked: string): Datapath {
  if (asked !== 'auto' && asked !== 'fused' && asked !== 'copy') {
    throw new BlockwireError('BW_INVALID_ARGUMENT', `datapath '${asked}' is none of auto, fused, copy`);
  }
  const candidates = probe.modes.filter(({ mode }) => asked === 'auto' || mode === asked);
  const chosen = candidates.find(({ available }) => available);
  if (chosen !== undefined) return chosen.mode;
  const missing = candidates
    .map(({ mode, missing: lacks }) => `${mode} needs ${lacks.join(', ')}`)
    .join('; ');
  throw new BlockwireError('BW_DATAPATH_UNAVAILABLE', `this host's kernel cannot do that: ${missing}`);
}
