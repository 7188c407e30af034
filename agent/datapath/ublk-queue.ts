/**
 * One hardware queue of a ublk device: fetches requests, hands them to the mirror, commits their results. One thread
 * fetches and commits all tags of a queue (drivers/block/ublk_drv.c: a tag belongs to the task that fetched it).
 *
 * Requests are handed over, and results given to the kernel, by `settle` at the end of a batch: after the copies of the
 * batch, and before anything is sent.
 */
import { mapDescriptor, PAGE_SIZE_BYTES, type Region } from '@blockwire/native/memory.ts';
import type { CompletionHandler, Ring } from '@blockwire/native/ring.ts';
import { IoringOp, Iosqe } from '@blockwire/native/uapi/io-uring.ts';
import { NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE } from '@blockwire/proto/nbd/constants.ts';
import {
  IO_DESC_WORDS,
  ioDescOffset,
  SECTOR_SHIFT,
  UblkIoCommand,
  UblkIoFlag,
  UblkIoOp,
} from '../ublk/uapi.ts';
import { CounterIndex } from './counters.ts';
import type { LatencyRecorder } from './latency.ts';
import type { Payload } from './payload.ts';
import { Operation, type RequestTable } from './request.ts';

const EIO = 5;
const EOPNOTSUPP = 95;
const EINVAL = 22;
const SECTOR_BYTES = 1 << SECTOR_SHIFT;
const TWO_TO_32 = 0x1_0000_0000;

const Op = { COMMAND: 0, REGISTER: 1, UNREGISTER: 2 } as const;

export interface QueueHost {
  /** The row `tag` of the request table is filled; `complete` is called for it once. */
  start(tag: number): void;
  /** The device stops and every tag was given back. */
  ended(): void;
}

/**
 * Whose memory payload is in, as ublk wants to be told:
 *   mapped    own memory, its address with each command (plain ublk)
 *   auto      registered by the kernel, the buffer index with each command
 *   manual    registered by commands of ours, for what is not in own memory
 *   none      own memory, copied by calls of ours (USER_COPY)
 */
export type QueueBuffers = 'mapped' | 'auto' | 'manual' | 'none';

export class UblkQueue implements CompletionHandler {
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #queueId: number;
  readonly #requests: RequestTable;
  readonly #payload: Payload;
  /** How the kernel is told where payload is, see `#command`. */
  readonly #buffers: QueueBuffers;
  readonly #host: QueueHost;
  readonly #counters: Float64Array;
  readonly #latency: LatencyRecorder;
  readonly #id: number;
  readonly #descRegion: Region;
  readonly #descs: Uint32Array;
  /** Requests to be handed over at the end of the batch, and results to be given to the kernel. */
  readonly #taken: Uint16Array;
  #takenCount = 0;
  readonly #committed: Uint16Array;
  readonly #results: Int32Array;
  #committedCount = 0;
  #abortedCount = 0;

  constructor(options: {
    ring: Ring;
    /** /dev/ublkcN */
    fd: number;
    queueId: number;
    requests: RequestTable;
    payload: Payload;
    buffers: QueueBuffers;
    host: QueueHost;
    counters: Float64Array;
    latency: LatencyRecorder;
  }) {
    this.#ring = options.ring;
    this.#fd = options.fd;
    this.#queueId = options.queueId;
    this.#requests = options.requests;
    this.#payload = options.payload;
    this.#buffers = options.buffers;
    const { depth } = options.requests;
    this.#taken = new Uint16Array(depth);
    this.#committed = new Uint16Array(depth);
    this.#results = new Int32Array(depth);
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

  /** A request is done: `settle` tells the kernel and fetches the tag's next one. @param result bytes, or negative errno */
  commit(tag: number, result: number): void {
    this.#committed[this.#committedCount] = tag;
    this.#results[this.#committedCount++] = result;
  }

  /** The end of a batch: copies payload, hands requests over, gives results to the kernel. */
  settle(): void {
    this.#payload.run();
    const takenCount = this.#takenCount;
    this.#takenCount = 0;
    for (let i = 0; i < takenCount; i++) {
      const tag = this.#taken[i]!;
      if (this.#payload.takeFailure(tag)) this.commit(tag, -EIO);
      else this.#host.start(tag);
    }
    for (let i = 0; i < this.#committedCount; i++) this.#commit(this.#committed[i]!, this.#results[i]!);
    this.#committedCount = 0;
  }

  #commit(tag: number, wanted: number): void {
    const result = this.#payload.takeFailure(tag) ? -EIO : wanted;
    const counters = this.#counters;
    counters[CounterIndex.inFlight] = counters[CounterIndex.inFlight]! - 1;
    this.#latency.end(tag);
    if (result < 0) counters[CounterIndex.errors] = counters[CounterIndex.errors]! + 1;
    if (this.#registers(tag)) this.#bufferCommand(UblkIoCommand.UNREGISTER_IO_BUF, tag, Op.UNREGISTER);
    this.#command(UblkIoCommand.COMMIT_AND_FETCH_REQ, tag, result);
  }

  /** Unmaps the descriptors; after `ended`. */
  release(): void {
    this.#descRegion.release();
  }

  complete(operation: number, tag: number, result: number): void {
    if (operation === Op.REGISTER) {
      if (result === 0) this.#hand(tag);
      else this.commit(tag, -EIO);
    } else if (operation === Op.UNREGISTER) {
      // Shows itself only when it failed: nothing was registered.
    } else if (result === 0) {
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
    if (length === 0 && requests.operation[tag] !== Operation.FLUSH) {
      this.commit(tag, -EINVAL);
    } else if (this.#registers(tag)) {
      this.#bufferCommand(UblkIoCommand.REGISTER_IO_BUF, tag, Op.REGISTER);
    } else {
      if (requests.operation[tag] === Operation.WRITE) this.#payload.fetch(tag, length);
      this.#hand(tag);
    }
  }

  #hand(tag: number): void {
    this.#taken[this.#takenCount++] = tag;
  }

  /** Whether this request's pages are registered by a command of ours. */
  #registers(tag: number): boolean {
    if (this.#buffers !== 'manual') return false;
    const operation = this.#requests.operation[tag]!;
    const data = operation === Operation.READ || operation === Operation.WRITE;
    return data && !this.#payload.isOwn(this.#requests.lengthBytes[tag]!);
  }

  #bufferCommand(command: number, tag: number, operation: number): void {
    const ring = this.#ring;
    const flags = operation === Op.UNREGISTER ? Iosqe.CQE_SKIP_SUCCESS : 0;
    const at = ring.prepare(
      IoringOp.URING_CMD,
      flags,
      0,
      this.#fd,
      command,
      0,
      0,
      0,
      this.#id,
      operation,
      tag,
    );
    ring.sqes[at + 12] = this.#queueId | (tag << 16);
    // struct ublksrv_io_cmd: addr is the buffer index.
    ring.sqes[at + 14] = tag;
  }

  #command(command: number, tag: number, result: number): void {
    // With AUTO_BUF_REG the SQE's address is struct ublk_auto_buf_reg: the buffer index in the low 16 bits, no flags.
    const sqeAddress = this.#buffers === 'auto' ? tag : 0;
    const ring = this.#ring;
    const at = ring.prepare(
      IoringOp.URING_CMD,
      0,
      0,
      this.#fd,
      command,
      sqeAddress,
      0,
      0,
      this.#id,
      Op.COMMAND,
      tag,
    );
    // struct ublksrv_io_cmd {q_id 16, tag 16, result 32, addr 64} in the SQE's command area.
    const sqes = ring.sqes;
    sqes[at + 12] = this.#queueId | (tag << 16);
    sqes[at + 13] = result;
    if (this.#buffers === 'mapped') {
      const { own, strideBytes } = this.#payload;
      const buffer = own!.address + tag * strideBytes;
      sqes[at + 14] = buffer >>> 0;
      sqes[at + 15] = (buffer / TWO_TO_32) >>> 0;
    }
  }
}
