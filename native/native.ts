/**
 * The typed face of the addon: every function of src/*.cc, under the same name and in the same order. Plain data
 * only; `null`, never `undefined`, crosses. Descriptors are numbers, addresses are numbers below 2^53 (Linux user
 * addresses are below 2^47). Functions throw KernelError, except where they are said to return a negative errno.
 */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { throwsKernelError } from './errors.ts';

/** Opaque record of one mapping. */
export interface MappingHandle {
  readonly __mapping: unique symbol;
}

export interface Mapped {
  readonly buffer: ArrayBuffer;
  readonly address: number;
  readonly handle: MappingHandle;
}

export interface Native {
  // ring.cc
  /** io_uring_setup(2). `params` is struct io_uring_params (120 bytes), filled by the kernel. Returns the descriptor. */
  ioUringSetup(entries: number, params: Uint32Array): number;
  /**
   * io_uring_enter(2) with GETEVENTS: submits, and waits for `minComplete` completions at most `timeoutUs` (negative:
   * without bound), of which it looks for one for up to `pollUs` before it sleeps, if the thread has a record with a ring
   * to poll. Returns the SQEs consumed, or the negative errno.
   */
  ioUringEnter(fd: number, toSubmit: number, minComplete: number, timeoutUs: number, pollUs: number): number;
  /**
   * From now on every ioUringEnter on this thread fills the record at this address (struct EnterRecord in ring.cc, 40
   * bytes); 0 ends it.
   */
  ioUringRecord(address: number): void;
  /** io_uring_register(2). */
  ioUringRegister(fd: number, opcode: number, argument: NodeJS.TypedArray | null, count: number): number;

  // memory.cc
  /** mmap(2): shared of `fd` at `offset`, or private anonymous memory with fd -1. Lengths in bytes. */
  map(fd: number, length: number, offset: number, writable: boolean, populate: boolean): Mapped;
  /** munmap(2) at once; the buffer is detached. Again is no error. */
  unmap(buffer: ArrayBuffer, handle: MappingHandle): void;
  /**
   * From now on a page of this mapping that the kernel cannot provide (SIGBUS: the file was cut, its disk fails) becomes one
   * of zeroes, private to the process. Returns a number for the next two, -1 when too many mappings have asked.
   */
  surviveFaults(address: number, length: number): number;
  /** Pages replaced so far. */
  faultCount(guard: number): number;
  /** Before the memory is unmapped. */
  endSurvival(guard: number): void;
  /**
   * PR_SET_IO_FLUSHER: memory that this thread needs is found without writing to block devices, of which one might
   * wait for this very thread. Threads made from now on inherit it; so does what follows an execve.
   */
  becomeIoFlusher(): void;

  // descriptors.cc
  close(fd: number): void;
  /** eventfd(2), counter at zero, close-on-exec. */
  eventfd(): number;
  eventfdSignal(fd: number): void;
  /** flock(2), exclusive, without waiting: false if another open file holds the lock. */
  flock(fd: number): boolean;
  /** lseek(2) with SEEK_DATA: where data begins at or behind `offset`; the negative errno (-ENXIO: nowhere). */
  seekData(fd: number, offset: number): number;
  /** lseek(2) with SEEK_HOLE: where a hole begins at or behind `offset`, the end of the file being one. */
  seekHole(fd: number, offset: number): number;
  /** fallocate(2): 0, or the negative errno. */
  fallocate(fd: number, mode: number, offset: number, length: number): number;
  /** socket(2), close-on-exec. */
  socket(domain: number, type: number): number;
  /** socketpair(2), AF_UNIX stream. */
  socketPair(): [number, number];
  bind(fd: number, sockaddr: Uint8Array): void;
  listen(fd: number, backlog: number): void;
  /** The local TCP port of a bound socket. */
  boundPort(fd: number): number;
  setSocketOption(fd: number, level: number, name: number, value: NodeJS.TypedArray): void;
  /** shutdown(2) of both directions; not connected is no error. */
  shutdown(fd: number): void;

  // ublk.cc
  /**
   * One ublk control command (linux/ublk_cmd.h) on a thread of its own. `command` is struct ublksrv_ctrl_cmd (32 bytes);
   * `data`, if any, is the buffer it points to. Resolves with the command's result, a negative errno on failure.
   */
  ublkControl(operation: number, command: Uint8Array, data: NodeJS.TypedArray | null): Promise<number>;

  // transfer.cc
  /**
   * Does `count` copies of `table` (transfer.ts) in order; `fd` is the file of those that name one. Returns how many did not
   * do their whole length.
   */
  transfer(fd: number, table: Uint32Array, count: number): number;
  /** pipe2(2), non-blocking, with room for `capacityBytes` of pages: read end, write end. */
  pipe(capacityBytes: number): [number, number];
  /**
   * Sends the pieces of `table` (transfer.ts) from `first` on, until all are sent or the socket is full. Returns the first
   * one not sent, or the negative errno.
   */
  sendPieces(
    socket: number,
    pipeRead: number,
    pipeWrite: number,
    table: Uint32Array,
    first: number,
    count: number,
  ): number;

  // checksum.cc
  /** CRC32C of a typed array; `seed` is 0 or the checksum of the bytes before. */
  crc32c(data: NodeJS.TypedArray, seed: number): number;
  /** The same by table, to test the CPU's instruction against. */
  crc32cSoftware(data: NodeJS.TypedArray, seed: number): number;
  /** CRC32C of `count` blocks of `blockSizeBytes` (a multiple of 8) at the given addresses, into `out`. */
  crc32cBlocks(addresses: Float64Array, count: number, blockSizeBytes: number, out: Uint32Array): void;
  /**
   * The same by one method: 0 folding, 1 the CPU's instruction, 2 a table. False, and nothing is done, where this CPU
   * does not have it or not for this size.
   */
  crc32cBlocksBy(
    addresses: Float64Array,
    count: number,
    blockSizeBytes: number,
    out: Uint32Array,
    method: number,
  ): boolean;
}

function load(): Native {
  const path = join(import.meta.dirname, 'build', 'blockwire.node');
  try {
    return createRequire(import.meta.url)(path) as Native;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`the native addon does not load (${reason}); build it with: npm run build`, {
      cause: error,
    });
  }
}

/** The addon; calls that throw throw KernelError. */
export const native: Native = throwsKernelError(load(), [
  'ioUringEnter',
  'seekData',
  'seekHole',
  'fallocate',
  'ublkControl',
  'transfer',
  'sendPieces',
  'crc32cBlocks',
  'crc32cBlocksBy',
  'crc32c',
]);
