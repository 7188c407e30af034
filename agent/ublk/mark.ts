/**
 * Whose device it is, kept by the kernel beside the device itself: the three words of struct ublksrv_ctrl_dev_info that
 * the driver stores for its servers (ublksrv_flags, reserved1, reserved2). A new process needs nothing else to know
 * its devices again, and no other server's device can be mistaken for one of ours.
 *
 *   ublksrv_flags   "BW" (16 bits) | volume id (48)
 *   reserved1       version (8) | datapath (8) | attachment id (48)
 *   reserved2       digest of the agent's id (64)
 */
import { createHash } from 'node:crypto';
import type { Datapath } from '../datapath/messages.ts';
import type { DeviceInfo } from './uapi.ts';

const MAGIC = 0x4257n;
const VERSION = 1n;
const ID_BITS = 48n;
const ID_MASK = (1n << ID_BITS) - 1n;
const ID = /^[a-z]+-([0-9a-f]{12})$/;
/** By number, which is stored: only ever added to. */
const DATAPATHS: readonly Datapath[] = ['copy', 'fused', 'splice'];

export interface Mark {
  readonly agentId: string;
  readonly volumeId: string;
  readonly attachmentId: string;
  readonly datapath: Datapath;
}

export interface ReadMark {
  readonly agentDigest: bigint;
  readonly volumeId: string;
  readonly attachmentId: string;
  readonly datapath: Datapath;
}

/** The words for ADD_DEV. Ids that are not the control plane's (tools) become zero: such a device is never taken over. */
export function encodeMark({ agentId, volumeId, attachmentId, datapath }: Mark): DeviceInfo['marks'] {
  const mode = BigInt(DATAPATHS.indexOf(datapath));
  return [
    (MAGIC << ID_BITS) | idBits(volumeId),
    (VERSION << 56n) | (mode << ID_BITS) | idBits(attachmentId),
    agentDigest(agentId),
  ];
}

/** Null for a device of another server, or of a version of ours that this one does not know. */
export function readMark([first, second, agent]: DeviceInfo['marks']): ReadMark | null {
  const datapath = DATAPATHS[Number((second >> ID_BITS) & 0xffn)];
  if (first >> ID_BITS !== MAGIC || second >> 56n !== VERSION || datapath === undefined) return null;
  return {
    agentDigest: agent,
    volumeId: `vol-${idText(first)}`,
    attachmentId: `att-${idText(second)}`,
    datapath,
  };
}

export function agentDigest(agentId: string): bigint {
  return createHash('sha256').update(agentId).digest().readBigUInt64LE(0);
}

function idBits(id: string): bigint {
  const digits = ID.exec(id)?.[1];
  return digits === undefined ? 0n : BigInt(`0x${digits}`);
}

function idText(word: bigint): string {
  return (word & ID_MASK).toString(16).padStart(12, '0');
}
