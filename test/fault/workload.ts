/** Random requests of one connection, every one of them entered into the model before it is sent. */
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { BLOCK_BYTES, rangeContent } from './block-content.ts';
import { type NbdSession, SessionEnded } from './nbd-session.ts';
import type { Random } from './random.ts';
import type { VolumeModel } from './volume-model.ts';

const HOT_BLOCKS = 24;
/** Open requests that may touch one block: the model's states multiply. */
const OPEN_IN_BLOCK_MAX = 3;
const LONG_BYTES_MAX = 3 * 2 ** 20;

export interface WorkloadCounts {
  sent: number;
  answered: number;
  flushed: number;
}

export interface Workload {
  readonly session: NbdSession;
  readonly volume: VolumeModel;
  readonly connection: number;
  readonly random: Random;
  readonly depth: number;
  readonly counts: WorkloadCounts;
  /** Called after every answer. */
  readonly onAnswer: () => void;
  readonly onViolation: (what: string) => void;
  /** Whether the node was told to end, so that refusals are in order. */
  readonly isStopping: () => boolean;
}

interface Range {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Sends requests until the session is over. */
export async function runWorkload(workload: Workload): Promise<void> {
  const { session, depth } = workload;
  let wake = (): void => {};
  const onAnswer = (): void => {
    workload.onAnswer();
    wake();
  };
  void session.closed.then(() => wake());
  while (session.reason === null) {
    if (session.inFlight < depth) {
      sendOne({ ...workload, onAnswer });
      // Bursts, so that requests meet each other in the node.
      if (!workload.random.oneIn(4)) continue;
      await new Promise((resolve) => setImmediate(resolve));
    } else {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  }
}

function sendOne(workload: Workload): void {
  const { random, volume } = workload;
  const kind = random.below(100);
  if (kind < 7) {
    send(workload, nbd.NBD_CMD_FLUSH, { offset: 0, lengthBytes: 0 });
    return;
  }
  const range = randomRange(random, volume.sizeBytes, kind);
  if (kind < 20) {
    readBack(workload, range);
    return;
  }
  if (volume.openIn(range.offset, range.lengthBytes) >= OPEN_IN_BLOCK_MAX) return;
  const fua = random.oneIn(8) ? nbd.NBD_CMD_FLAG_FUA : 0;
  if (kind < 28) {
    send(workload, nbd.NBD_CMD_TRIM, range, { flags: fua });
  } else if (kind < 38) {
    const noHole = random.oneIn(2) ? nbd.NBD_CMD_FLAG_NO_HOLE : 0;
    send(workload, nbd.NBD_CMD_WRITE_ZEROES, range, { flags: fua | noHole });
  } else {
    const data = rangeContent(range.offset, range.lengthBytes, ++workload.counts.sent);
    send(workload, nbd.NBD_CMD_WRITE, range, { flags: fua, data });
  }
}

/** Single blocks mostly, many of them in a hot spot; also runs of blocks, odd bytes, and longer than one buffer. */
function randomRange(random: Random, sizeBytes: number, kind: number): Range {
  const blocks = Math.ceil(sizeBytes / BLOCK_BYTES);
  const block = random.oneIn(2) ? random.below(Math.min(HOT_BLOCKS, blocks)) : random.below(blocks);
  let offset = block * BLOCK_BYTES;
  let lengthBytes = BLOCK_BYTES;
  const shape = random.below(100);
  if (shape >= 98) lengthBytes = 2 ** 20 + random.below(LONG_BYTES_MAX - 2 ** 20);
  else if (shape >= 75) lengthBytes = BLOCK_BYTES * (2 + random.below(40));
  const isRead = kind < 20;
  if (!isRead && shape % 4 === 1) {
    offset += random.below(BLOCK_BYTES);
    lengthBytes = shape >= 75 ? lengthBytes + random.below(BLOCK_BYTES) : 1 + random.below(2 * BLOCK_BYTES);
  }
  if (isRead) lengthBytes = Math.ceil(lengthBytes / BLOCK_BYTES) * BLOCK_BYTES;
  offset = Math.min(offset, sizeBytes - 1);
  return { offset, lengthBytes: Math.min(lengthBytes, sizeBytes - offset) };
}

function send(
  workload: Workload,
  type: number,
  { offset, lengthBytes }: Range,
  options: { flags?: number; data?: Buffer } = {},
): void {
  const { volume, session, connection, counts } = workload;
  const { data } = options;
  const mark =
    type === nbd.NBD_CMD_FLUSH
      ? null
      : volume.sent(
          connection,
          data === undefined
            ? { kind: type === nbd.NBD_CMD_TRIM ? 'trim' : 'zero', offset, lengthBytes }
            : { kind: 'write', offset, data },
        );
  session.request(type, offset, lengthBytes, options).then(
    ({ error }) => {
      if (error === nbd.NBD_OK) {
        mark?.answered();
        counts.answered++;
        if (type === nbd.NBD_CMD_FLUSH) counts.flushed++;
      } else if (!(workload.isStopping() && error === nbd.NBD_ESHUTDOWN)) {
        workload.onViolation(
          `${volume.name}: command ${type} at ${offset}, ${lengthBytes} bytes, flags ${options.flags ?? 0}: error ${error}`,
        );
      }
      workload.onAnswer();
    },
    (ended) => expectEnd(workload, ended),
  );
}

function readBack(workload: Workload, { offset, lengthBytes }: Range): void {
  const { volume, session } = workload;
  const read = volume.read(offset, lengthBytes);
  session.request(nbd.NBD_CMD_READ, offset, lengthBytes).then(
    ({ error, data }) => {
      if (error === nbd.NBD_OK) for (const wrong of read.ended(data)) workload.onViolation(`read: ${wrong}`);
      else if (!workload.isStopping()) {
        workload.onViolation(`${volume.name}: read at ${offset}, ${lengthBytes} bytes: error ${error}`);
      }
      workload.onAnswer();
    },
    (ended) => {
      read.ended(null);
      expectEnd(workload, ended);
    },
  );
}

function expectEnd(workload: Workload, ended: unknown): void {
  if (!(ended instanceof SessionEnded)) workload.onViolation(`the client failed: ${String(ended)}`);
}
