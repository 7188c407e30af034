/** The kernel behind NodeIo: sockets and files through one io_uring, memory registered as one fixed buffer. */
import { mapDescriptor, type Region } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import type { CompletionHandler, Ring } from '@blockwire/native/ring.ts';
import { tuneDataSocket } from '@blockwire/native/sockets.ts';
import { IoringOp, MSG_NOSIGNAL, MSG_WAITALL, RWF_DSYNC } from '@blockwire/native/uapi/io-uring.ts';
import { CHECKSUM_BLOCK_BYTES } from '../store/checksum-file.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import {
  type CompletionSink,
  type MappedWords,
  type NodeIo,
  OP_ACCEPT,
  OP_DISK,
  OP_RECEIVE,
  OP_RECEIVE_PAYLOAD,
  OP_SEND,
} from './node-io.ts';

const SOCK_CLOEXEC = 0o2000000;
/** A client that acknowledges nothing, or takes nothing, for five minutes is gone. */
const UNACKED_MS_MAX = 300_000;
const SEND_FLAGS = MSG_WAITALL | MSG_NOSIGNAL;
/** Word of an SQE that holds `buf_index` in its low half. */
const SQE_BUF_INDEX = 10;
/** First words of its 64-bit `off` and `addr`. */
const SQE_OFFSET = 2;
const SQE_ADDRESS = 4;
const TWO_POW_32 = 0x1_0000_0000;
const BUFFER_INDEX = 0;

export class RingIo implements NodeIo, CompletionHandler {
  readonly memory: Region;
  readonly clock: Float64Array;
  sink: CompletionSink | null = null;
  readonly #ring: Ring;
  readonly #handler: number;
  readonly #readOp: number;
  readonly #writeOp: number;

  /**
   * Registers the memory with the ring. If the kernel refuses (RLIMIT_MEMLOCK), plain reads and writes are used and
   * `registered` is false.
   */
  constructor(ring: Ring, memory: Region) {
    this.#ring = ring;
    this.memory = memory;
    this.clock = ring.clock;
    this.#handler = ring.addHandler(this);
    let registered = false;
    try {
      ring.registerSparseBuffers(1);
      ring.registerBuffer(BUFFER_INDEX, memory.address, memory.sizeBytes);
      registered = true;
    } catch {
      // Not a failure: registered buffers only save work.
    }
    this.#readOp = registered ? IoringOp.READ_FIXED : IoringOp.READ;
    this.#writeOp = registered ? IoringOp.WRITE_FIXED : IoringOp.WRITE;
  }

  get registered(): boolean {
    return this.#readOp === IoringOp.READ_FIXED;
  }

  complete(operation: number, data: number, result: number): void {
    if (operation === OP_ACCEPT && result >= 0) {
      tuneDataSocket(result, UNACKED_MS_MAX);
    }
    this.sink!.complete(operation, data, result);
  }

  accept(listenFd: number): void {
    this.#ring.prepare(IoringOp.ACCEPT, 0, 0, listenFd, 0, 0, 0, SOCK_CLOEXEC, this.#handler, OP_ACCEPT, 0);
  }

  receive(fd: number, at: number, lengthBytes: number, connection: number): void {
    this.#ring.receive(fd, this.memory, at, lengthBytes, 0, 0, this.#handler, OP_RECEIVE, connection);
  }

  receivePayload(fd: number, at: number, lengthBytes: number, connection: number): void {
    this.#ring.receive(
      fd,
      this.memory,
      at,
      lengthBytes,
      MSG_WAITALL,
      0,
      this.#handler,
      OP_RECEIVE_PAYLOAD,
      connection,
    );
  }

  send(fd: number, at: number, lengthBytes: number, connection: number): void {
    this.#ring.send(fd, this.memory, at, lengthBytes, SEND_FLAGS, 0, this.#handler, OP_SEND, connection);
  }

  sendMessage(fd: number, at: number, connection: number): void {
    const ring = this.#ring;
    const sqe = ring.prepare(
      IoringOp.SENDMSG,
      0,
      0,
      fd,
      0,
      0,
      1,
      SEND_FLAGS,
      this.#handler,
      OP_SEND,
      connection,
    );
    ring.pointTo(sqe, this.memory, at);
  }

  shutdown(fd: number): void {
    native.shutdown(fd);
  }

  close(fd: number): void {
    native.close(fd);
  }

  read(fd: number, block: number, at: number, lengthBytes: number, slot: number): void {
    const ring = this.#ring;
    const sqe = ring.prepare(this.#readOp, 0, 0, fd, 0, 0, lengthBytes, 0, this.#handler, OP_DISK, slot);
    setFileOffset(ring.sqes, sqe, block);
    ring.pointTo(sqe, this.memory, at);
    ring.sqes[sqe + SQE_BUF_INDEX] = BUFFER_INDEX;
  }

  write(fd: number, block: number, at: number, lengthBytes: number, durable: boolean, slot: number): void {
    const ring = this.#ring;
    const sqe = ring.prepare(
      this.#writeOp,
      0,
      0,
      fd,
      0,
      0,
      lengthBytes,
      durable ? RWF_DSYNC : 0,
      this.#handler,
      OP_DISK,
      slot,
    );
    setFileOffset(ring.sqes, sqe, block);
    ring.pointTo(sqe, this.memory, at);
    ring.sqes[sqe + SQE_BUF_INDEX] = BUFFER_INDEX;
  }

  dataSync(fd: number, slot: number): void {
    this.#ring.dataSync(fd, 0, this.#handler, OP_DISK, slot);
  }

  fallocate(fd: number, mode: number, block: number, blockCount: number, slot: number): void {
    const ring = this.#ring;
    // io_uring takes the length in `addr` and the mode in `len` (io_uring/sync.c, io_fallocate_prep).
    const sqe = ring.prepare(IoringOp.FALLOCATE, 0, 0, fd, 0, 0, mode, 0, this.#handler, OP_DISK, slot);
    setFileOffset(ring.sqes, sqe, block);
    const lengthBytes = blockCount * UNIT_BYTES;
    ring.sqes[sqe + SQE_ADDRESS] = lengthBytes >>> 0;
    ring.sqes[sqe + SQE_ADDRESS + 1] = (lengthBytes / TWO_POW_32) >>> 0;
  }

  seekData(fd: number, offset: number): number {
    return native.seekData(fd, offset);
  }

  seekHole(fd: number, offset: number): number {
    return native.seekHole(fd, offset);
  }

  mapWords(fd: number, count: number, writable: boolean): MappedWords {
    const region = mapDescriptor({ fd, lengthBytes: count * 4, offset: 0, writable, populate: false });
    // The length of the mapping, not of its words: it is whole pages.
    const guard = native.surviveFaults(region.address, Math.ceil((count * 4) / 4096) * 4096);
    return {
      words: region.words,
      faultCount: () => native.faultCount(guard),
      release: () => {
        native.endSurvival(guard);
        region.release();
      },
    };
  }

  checksumBlocks(addresses: Float64Array, count: number, out: Uint32Array): void {
    native.crc32cBlocks(addresses, count, CHECKSUM_BLOCK_BYTES, out);
  }
}

/** Of the SQE that begins at word `sqe`. Not a parameter of `prepare`: from 2^31 on it would be boxed (block-math.ts). */
function setFileOffset(sqes: Uint32Array, sqe: number, block: number): void {
  const offset = block * UNIT_BYTES;
  sqes[sqe + SQE_OFFSET] = offset >>> 0;
  sqes[sqe + SQE_OFFSET + 1] = (offset / TWO_POW_32) >>> 0;
}
