/** The rungs inside a datapath: which to take, what each asks of ublk when the device is added, how they read. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { UblkFeature } from '../ublk/uapi.ts';
import type { Datapath, DatapathLadder } from './messages.ts';
import type { HostProbe, Rung } from './probe.ts';

/** What the newest kernels can do, with the thresholds that measured best. */
const BEST_LADDER: DatapathLadder = {
  send: 'auto',
  zeroCopyBytesMin: 32 * 1024,
  receive: 'recv',
  buffers: 'auto',
  smallBytesMax: 32 * 1024,
};

/**
 * The rungs to use on this host, except those that were asked for. Throws BW_DATAPATH_UNAVAILABLE for one that this kernel
 * does not have.
 */
export function chooseLadder(probe: HostProbe, asked: Partial<DatapathLadder> = {}): DatapathLadder {
  const has = (rung: Rung): boolean => probe.rungs.some((report) => report.rung === rung && report.available);
  const need = (rung: Rung): void => {
    const report = probe.rungs.find((candidate) => candidate.rung === rung);
    if (report === undefined || report.available) return;
    throw new BlockwireError(
      'BW_DATAPATH_UNAVAILABLE',
      `this host's kernel has no ${report.name}: ${report.reason}`,
    );
  };
  if (asked.send === 'zc' || asked.send === 'auto') need('sendZc');
  if (asked.send === 'plain' || asked.send === 'auto') need('send');
  if (asked.receive !== undefined) need(asked.receive);
  if (asked.buffers !== undefined) need(asked.buffers === 'auto' ? 'autoBuffers' : 'manualBuffers');
  const ladder: DatapathLadder = {
    ...BEST_LADDER,
    send: !has('sendZc') ? 'plain' : has('send') ? 'auto' : 'zc',
    receive: has('recv') ? 'recv' : 'readFixed',
    buffers: has('autoBuffers') ? 'auto' : 'manual',
    smallBytesMax: has('userCopy') ? BEST_LADDER.smallBytesMax : 0,
    ...asked,
  };
  // Without SEND of registered pages everything that is in them goes by SEND_ZC.
  return has('send') || ladder.send === 'plain' ? ladder : { ...ladder, zeroCopyBytesMin: 0 };
}

/** UBLK_F_* that a device with this datapath must be added with. */
export function datapathFeatures(datapath: Datapath, ladder: DatapathLadder): number {
  if (datapath === 'copy') return 0;
  if (datapath === 'splice') return UblkFeature.USER_COPY;
  return (
    UblkFeature.SUPPORT_ZERO_COPY |
    (ladder.buffers === 'auto' ? UblkFeature.AUTO_BUF_REG : 0) |
    (ladder.smallBytesMax > 0 ? UblkFeature.USER_COPY : 0)
  );
}

/** A datapath and its rungs in one line, for people. */
export function describeLadder(datapath: Datapath, ladder: DatapathLadder): string {
  const kib = (bytes: number): string => `${bytes / 1024} KiB`;
  const small = ladder.smallBytesMax > 0 ? [`batches up to ${kib(ladder.smallBytesMax)}`] : [];
  if (datapath !== 'fused') return [datapath, ...small].join(', ');
  const send = ladder.send === 'plain' ? 'SEND' : `SEND_ZC from ${kib(ladder.zeroCopyBytesMin)}`;
  const receive = ladder.receive === 'recv' ? 'RECV' : 'READ_FIXED';
  return ['fused', send, receive, `${ladder.buffers} buffers`, ...small].join(', ');
}
