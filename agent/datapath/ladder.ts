/** The rungs inside a datapath, and what each asks of ublk when the device is added. */
import { UblkFeature } from '../ublk/uapi.ts';
import type { Datapath, DatapathLadder } from './messages.ts';
import type { HostProbe } from './probe.ts';

/** What the newest kernels can do, with the thresholds that measured best. */
const BEST_LADDER: DatapathLadder = {
  send: 'plain',
  zeroCopyBytesMin: 32 * 1024,
  receive: 'recv',
  buffers: 'auto',
  smallBytesMax: 16 * 1024,
};

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

/** The rungs to use on this host, except those that were asked for. */
export function chooseLadder(_probe: HostProbe, asked: Partial<DatapathLadder> = {}): DatapathLadder {
  return { ...BEST_LADDER, ...asked };
}
