/**
 * One hardware queue of a ublk device: fetches requests, hands them to the mirror, commits their results. One thread
 * fetches and commits all tags of a queue (drivers/block/ublk_drv.c: a tag belongs to the task that fetched it).
 */
import { mapDescriptor, PAGE_SIZE_BYTES, type Region } from '@blockwire/native/memory.ts';
import type { CompletionHandler, Ring } from '@blockwire/native/ring.ts';
import { IoringOp } from '@blockwire/native/uapi/io-uring.ts';
import { NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE } from '@blockwire/proto/nbd/constants.ts';
import {
  IO_DESC_WORDS,
  ioDescOffset,
  SECTOR_SHIFT,
  UblkIoCommand,
  UblkIoFlag,
  UblkIoOp,
} from '../ublk/uapi.ts';
import type { PayloadMemory } from './connection.ts';
import { CounterIndex } from './counters.ts';
import type { LatencyRecorder } from './latency.ts';
import { Operation, type RequestTable } from './request.ts';

const EOPNOTSUPP = 95;
const EINVAL = 22;
const SECTOR_BYTES = 1 << SECTOR_SHIFT;
const TWO_TO_32 = 0x1_0000_0000;

export interface QueueHost {
  /** The row `tag` of the request table is filled; `complete` is called for it once. */
  start(tag: number): void;
  /** The device stops and every tag was given back. */
  ended(): void;
}

export class UblkQueue implements CompletionHandler {
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #queueId: number;
  readonly #requests: RequestTable;
  readonly #payload: PayloadMemory;
  readonly #host: QueueHost;
  readonly #counters: Float64Array;
  readonly #latency: LatencyRecorder;
  readonly #id: number;
  readonly #descRegion: Region;
  readonly #descs: Uint32Array;
  #abortedCount = 0;

  constructor(options: {
    ring: Ring;
    /** /dev/ublkcN */
    fd: number;
    queueId: number;
    requests: RequestTable;
    payload: PayloadMemory;
    host: QueueHost;
    counters: Float64Array;
    latency: LatencyRecorder;
  }) {
    this.#ring = options.ring;
    this.#fd = options.fd;
    this.#queueId = options.queueId;
    this.#requests = options.requests;
    this.#payload = options.payload;
    this.#host = options.host;
    this.#counters = options.counters;
    this.#latency = options.latency;
    this.#id = this.#ring.addHandler(this);
    const descBytes = options.requests.depth * IO_DESC_WORDS * 4;
    this.#descRegion = mapDescriptor({
      fd: options.fd,
      lengthBytes: Math.ceil(descBytes / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES,
      offset: ioDescOffset(options.queueId),
      // The driver refuses writable mappings.
      writable: false,
    });
    this.#descs = this.#descRegion.words;
  }

  /** Fetches every tag; they are with the kernel after the next `enter`. */
  fetchAll(): void {
    for (let tag = 0; tag < this.#requests.depth; tag++) this.#command(UblkIoCommand.FETCH_REQ, tag, 0);
  }

  /** Gives a request's result to the kernel and fetches the tag's next one. @param result bytes, or negative errno */
  commit(tag: number, result: number): void {
    const counters = this.#counters;
    counters[CounterIndex.inFlight] = counters[CounterIndex.inFlight]! - 1;
    this.#latency.end(tag);
    if (result < 0) counters[CounterIndex.errors] = counters[CounterIndex.errors]! + 1;
    this.#command(UblkIoCommand.COMMIT_AND_FETCH_REQ, tag, result);
  }

  /** Unmaps the descriptors; after `ended`. */
  release(): void {
    this.#descRegion.release();
  }

  complete(_operation: number, tag: number, result: number): void {
    if (result === 0) {
      this.#take(tag);
    } else if (++this.#abortedCount === this.#requests.depth) {
      // Anything but 0 (UBLK_IO_RES_ABORT, or a refused command) takes the tag out of service for good.
      this.#host.ended();
    }
  }

  #take(tag: number): void {
    const at = tag * IO_DESC_WORDS;
    const opFlags = this.#descs[at]!;
    const sectors = this.#descs[at + 1]!;
    const requests = this.#requests;
    const counters = this.#counters;
    counters[CounterIndex.inFlight] = counters[CounterIndex.inFlight]! + 1;
    this.#latency.begin(tag);
    const length = sectors * SECTOR_BYTES;
    requests.offsetBytes[tag] = (this.#descs[at + 3]! * TWO_TO_32 + this.#descs[at + 2]!) * SECTOR_BYTES;
    requests.lengthBytes[tag] = length;
    requests.flags[tag] = (opFlags & UblkIoFlag.FUA) !== 0 ? NBD_CMD_FLAG_FUA : 0;
    switch (opFlags & 0xff) {
      case UblkIoOp.READ:
        requests.operation[tag] = Operation.READ;
        // NBD defines FUA for what changes data only.
        requests.flags[tag] = 0;
        counters[CounterIndex.readOps] = counters[CounterIndex.readOps]! + 1;
        counters[CounterIndex.readBytes] = counters[CounterIndex.readBytes]! + length;
        break;
      case UblkIoOp.WRITE:
        requests.operation[tag] = Operation.WRITE;
        counters[CounterIndex.writeOps] = counters[CounterIndex.writeOps]! + 1;
        counters[CounterIndex.writeBytes] = counters[CounterIndex.writeBytes]! + length;
        break;
      case UblkIoOp.FLUSH:
        requests.operation[tag] = Operation.FLUSH;
        requests.flags[tag] = 0;
        requests.offsetBytes[tag] = 0;
        requests.lengthBytes[tag] = 0;
        counters[CounterIndex.flushOps] = counters[CounterIndex.flushOps]! + 1;
        break;
      case UblkIoOp.DISCARD:
        requests.operation[tag] = Operation.TRIM;
        counters[CounterIndex.trimOps] = counters[CounterIndex.trimOps]! + 1;
        break;
      case UblkIoOp.WRITE_ZEROES:
        requests.operation[tag] = Operation.WRITE_ZEROES;
        if ((opFlags & UblkIoFlag.NOUNMAP) !== 0)
          requests.flags[tag] = requests.flags[tag]! | NBD_CMD_FLAG_NO_HOLE;
        counters[CounterIndex.trimOps] = counters[CounterIndex.trimOps]! + 1;
        break;
      default:
        this.commit(tag, -EOPNOTSUPP);
        return;
    }
    if (length > 0 || requests.operation[tag] === Operation.FLUSH) this.#host.start(tag);
    else this.commit(tag, -EINVAL);
  }

  #command(command: number, tag: number, result: number): void {
    const { region, strideBytes } = this.#payload;
    // With AUTO_BUF_REG the SQE's address is struct ublk_auto_buf_reg: the buffer index in the low 16 bits, no flags.
    const sqeAddress = region === null ? tag : 0;
    const ring = this.#ring;
    const at = ring.prepare(IoringOp.URING_CMD, 0, 0, this.#fd, command, sqeAddress, 0, 0, this.#id, 0, tag);
    // struct ublksrv_io_cmd {q_id 16, tag 16, result 32, addr 64} in the SQE's command area.
    const sqes = ring.sqes;
    sqes[at + 12] = this.#queueId | (tag << 16);
    sqes[at + 13] = result;
    if (region !== null) {
      const buffer = region.address + tag * strideBytes;
      sqes[at + 14] = buffer >>> 0;
      sqes[at + 15] = (buffer / TWO_TO_32) >>> 0;
    }
  }
}
