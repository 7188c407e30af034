/**
 * What the data path asks of the kernel. Two implementations: the ring (ring-io.ts) and, in tests, a simulated one
 * that loses, delays and breaks things. Memory is named by its position in the worker's one region.
 *
 * Every call but `shutdown` and `close` ends in exactly one completion with the operation's number below, the `data`
 * word given (a connection or a slot) and a result: bytes, or a negative errno.
 */

export const OP_ACCEPT = 0;
export const OP_RECEIVE = 1;
export const OP_RECEIVE_PAYLOAD = 2;
export const OP_SEND = 3;
export const OP_DISK = 4;

/** Modes of fallocate(2), include/uapi/linux/falloc.h. */
export const FALLOC_FL_KEEP_SIZE = 0x01;
export const FALLOC_FL_PUNCH_HOLE = 0x02;
export const FALLOC_FL_ZERO_RANGE = 0x10;

export interface NodeMemory {
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  readonly view: DataView;
  /** Added to a position where the kernel reads an address out of memory: the iovecs of `sendMessage`. */
  readonly address: number;
}

/** The 32-bit words of a file, shared with it. */
export interface MappedWords {
  readonly words: Uint32Array;
  /** Pages that the file could not provide, being cut or on a failing disk: they hold zeroes, and are lost. */
  faultCount(): number;
  /** Nothing may use the words afterwards. */
  release(): void;
}

export interface CompletionSink {
  complete(operation: number, data: number, result: number): void;
}

export interface NodeIo {
  readonly memory: NodeMemory;
  /** Element 0: monotonic microseconds, as of the last batch of completions. */
  readonly clock: Float64Array;
  /** Who gets the completions; set once, before the first call. */
  sink: CompletionSink | null;

  /** One connection of the listening socket: its descriptor is the result of OP_ACCEPT. */
  accept(listenFd: number): void;
  /** What is there, at least a byte (0: end of stream). Completes as OP_RECEIVE. */
  receive(fd: number, at: number, lengthBytes: number, connection: number): void;
  /** Exactly that many bytes, fewer only at the end of the stream. Completes as OP_RECEIVE_PAYLOAD. */
  receivePayload(fd: number, at: number, lengthBytes: number, connection: number): void;
  /** All of it, fewer only when the connection breaks. Completes as OP_SEND. */
  send(fd: number, at: number, lengthBytes: number, connection: number): void;
  /** As `send`, with the struct msghdr at `at`. */
  sendMessage(fd: number, at: number, connection: number): void;
  /** Ends a connection in both directions: what is pending on it completes. */
  shutdown(fd: number): void;
  close(fd: number): void;

  // Files; all complete as OP_DISK. They are addressed in blocks of 4096 bytes (block-math.ts says why); lengths and positions
  // of reads and writes are multiples of 4096.
  read(fd: number, block: number, at: number, lengthBytes: number, slot: number): void;
  /** @param durable whether the data must be on stable storage at completion */
  write(fd: number, block: number, at: number, lengthBytes: number, durable: boolean, slot: number): void;
  dataSync(fd: number, slot: number): void;
  fallocate(fd: number, mode: number, block: number, blockCount: number, slot: number): void;

  // These answer at once.
  /** Where data begins at or behind `offset`, or where a hole does; a negative errno (ENXIO: no data from there on). */
  seekData(fd: number, offset: number): number;
  seekHole(fd: number, offset: number): number;
  /** The first `count` words of a file. */
  mapWords(fd: number, count: number, writable: boolean): MappedWords;
  /** CRC32C of each of `count` blocks of 4096 bytes at these addresses (position + memory.address). */
  checksumBlocks(addresses: Float64Array, count: number, out: Uint32Array): void;
}
