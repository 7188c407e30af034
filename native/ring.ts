/**
 * One io_uring, driven from TypeScript. SQEs are written as 32-bit words into the mapped array; completions are read
 * from the mapped queue and dispatched to the handler that the SQE named.
 *
 * Invariants:
 * - One thread creates and uses a ring (SINGLE_ISSUER | DEFER_TASKRUN): the kernel touches the queues only inside
 *   `enter`, so plain loads and stores are enough.
 * - user_data is {data (low word), handler << 8 | operation (high word)}; nothing is looked up by 64-bit keys.
 * - A chain of linked SQEs never spans two submissions: callers `reserve` room for a whole chain before they write it.
 * - Nothing here allocates after construction.
 */
import { checkResult, KernelError } from './errors.ts';
import { allocateRegion, mapDescriptor, PAGE_SIZE_BYTES, type Region } from './memory.ts';
import { native } from './native.ts';
import {
  IORING_FSYNC_DATASYNC,
  IORING_OFF_SQ_RING,
  IORING_OFF_SQES,
  IORING_RSRC_REGISTER_SPARSE,
  IORING_SQ_CQ_OVERFLOW,
  IoringOp,
  IoringRegister,
  IoringSetup,
} from './uapi/io-uring.ts';

const SQE_WORDS = 16;
const CQE_WORDS = 4;
const SQE_BYTES = SQE_WORDS * 4;
const HANDLERS_MAX = 1 << 16;
const TWO_TO_32 = 0x1_0000_0000;
const EINTR = 4;
const EAGAIN = 11;
const EBUSY = 16;
const ETIME = 62;

/** Whoever submits operations: gets their completions. */
export interface CompletionHandler {
  /**
   * @param operation the number given with the SQE (0..255)
   * @param data the word given with the SQE: a tag, a slot
   * @param result what the operation returned, a negative errno on failure
   * @param flags the CQE's flags (IoringCqe)
   */
  complete(operation: number, data: number, result: number, flags: number): void;
}

export interface RingOptions {
  /** SQEs; a power of two. Also the longest chain. */
  readonly entries: number;
  /**
   * Keep a record of each `enter`: `clock`, `waitedUs`; and let it poll. Of the rings of one thread, the last one made keeps it
   * for all, and is the only one that may poll.
   */
  readonly clock?: boolean;
  /** CQEs; default four times `entries`. More completions than that are kept by the kernel, at a cost. */
  readonly cqEntries?: number;
}

const SETUP =
  IoringSetup.CQSIZE | IoringSetup.SUBMIT_ALL | IoringSetup.SINGLE_ISSUER | IoringSetup.DEFER_TASKRUN;

/** Words of struct EnterRecord (ring.cc). */
const WAITED_US_WORD = 2;
const CALLS_WORD = 3;
const CQ_HEAD_AT = 16;
const CQ_TAIL_AT = 24;
const SQ_FLAGS_AT = 32;

/**
 * The ring's descriptor; fills `params`. Without the array of SQE numbers where the kernel can: it patches its own submission
 * path whenever the first ring that has one is made or the last one is gone (io_uring.c, io_key_has_sqarray).
 */
function setUp(entries: number, params: Uint32Array, polled: boolean): number {
  const flags = SETUP | (polled ? IoringSetup.TASKRUN_FLAG : 0);
  try {
    params[2] = flags | IoringSetup.NO_SQARRAY;
    return native.ioUringSetup(entries, params);
  } catch (error) {
    if (!(error instanceof KernelError && error.code === 'EINVAL')) throw error;
    params[2] = flags;
    return native.ioUringSetup(entries, params);
  }
}

export class Ring {
  readonly fd: number;
  readonly entries: number;
  /** Calls of io_uring_enter so far. */
  enterCount = 0;
  /** SQEs submitted and completions dispatched so far. */
  submittedCount = 0;
  completedCount = 0;

  /**
   * Element 0 is when this thread's last `enter` returned: CLOCK_MONOTONIC in microseconds. One time a batch, stored by
   * the native call, for reading a clock from JavaScript allocates. 0 without `RingOptions.clock`.
   */
  readonly clock: Float64Array;

  readonly #record: Region | null;
  readonly #recordWords: Uint32Array;
  readonly #queues: Region;
  readonly #sqeRegion: Region;
  readonly #sqes: Uint32Array;
  readonly #sqHead: number;
  readonly #sqTail: number;
  readonly #sqFlags: number;
  readonly #sqMask: number;
  readonly #cqHead: number;
  readonly #cqTail: number;
  readonly #cqMask: number;
  readonly #cqes: number;
  readonly #words: Uint32Array;
  readonly #handlers: (CompletionHandler | null)[] = [];
  readonly #freeHandlers: number[] = [];
  /** SQEs written so far, modulo 2^32: the tail that the kernel sees at the next `enter`. */
  #tail = 0;
  #toSubmit = 0;
  #closed = false;

  /** Throws KernelError (ENOSYS, EPERM where io_uring is switched off, EINVAL on kernels before 6.1). */
  constructor(options: RingOptions) {
    // struct io_uring_params: 10 words, then io_sqring_offsets (10 words) and io_cqring_offsets (10 words).
    const params = new Uint32Array(30);
    params[1] = options.cqEntries ?? options.entries * 4;
    const keepsRecord = options.clock === true;
    this.fd = setUp(options.entries, params, keepsRecord);
    this.entries = params[0]!;
    const hasArray = (params[2]! & IoringSetup.NO_SQARRAY) === 0;
    const cqEntries = params[1]!;
    const cqesOffset = params[25]!;
    const arrayEnd = hasArray ? params[16]! + this.entries * 4 : 0;
    const queuesBytes = Math.max(arrayEnd, cqesOffset + cqEntries * CQE_WORDS * 4);
    this.#queues = mapDescriptor({
      fd: this.fd,
      lengthBytes: queuesBytes,
      offset: IORING_OFF_SQ_RING,
      writable: true,
    });
    this.#sqeRegion = mapDescriptor({
      fd: this.fd,
      lengthBytes: this.entries * SQE_BYTES,
      offset: IORING_OFF_SQES,
      writable: true,
    });
    this.#sqes = this.#sqeRegion.words;
    this.#words = this.#queues.words;
    this.#sqHead = params[10]! / 4;
    this.#sqTail = params[11]! / 4;
    this.#sqMask = this.#words[params[12]! / 4]!;
    this.#sqFlags = params[14]! / 4;
    this.#cqHead = params[20]! / 4;
    this.#cqTail = params[21]! / 4;
    this.#cqMask = this.#words[params[22]! / 4]!;
    this.#cqes = cqesOffset / 4;
    this.#record = keepsRecord ? allocateRegion(PAGE_SIZE_BYTES) : null;
    this.#recordWords = this.#record?.words ?? new Uint32Array(4);
    this.clock = new Float64Array(this.#recordWords.buffer, 0, 1);
    if (this.#record !== null) this.#keepRecord(this.#record);
    // The indirection of the submission queue is never needed: slot i always names SQE i.
    const arrayAt = params[16]! / 4;
    for (let i = 0; hasArray && i < this.entries; i++) this.#words[arrayAt + i] = i;
  }

  #keepRecord({ view, address }: Region): void {
    const wordAddress = (word: number): bigint => BigInt(this.#queues.address + word * 4);
    view.setBigUint64(CQ_HEAD_AT, wordAddress(this.#cqHead), true);
    view.setBigUint64(CQ_TAIL_AT, wordAddress(this.#cqTail), true);
    view.setBigUint64(SQ_FLAGS_AT, wordAddress(this.#sqFlags), true);
    native.ioUringRecord(address);
  }

  /** Registers who gets the completions of the SQEs that carry the returned number. */
  addHandler(handler: CompletionHandler): number {
    const id = this.#freeHandlers.pop() ?? this.#handlers.length;
    if (id >= HANDLERS_MAX) throw new RangeError(`a ring has at most ${HANDLERS_MAX} handlers`);
    this.#handlers[id] = handler;
    return id;
  }

  /** Gives the number back. All of the handler's operations must have completed. */
  removeHandler(id: number): void {
    this.#handlers[id] = null;
    this.#freeHandlers.push(id);
  }

  /** Makes room for `count` SQEs in one submission (count ≤ entries): submits what is pending if need be. */
  reserve(count: number): void {
    if (this.entries - this.#toSubmit >= count) return;
    this.submit();
    if (this.entries - this.#toSubmit < count) throw new RangeError(`no room for a chain of ${count} SQEs`);
  }

  /**
   * Writes one SQE and returns the index of its first word in `sqes`, for fields that this signature lacks. `address`
   * is a memory address, or for a registered buffer of ublk a byte offset; `offset` a file offset, in bytes.
   */
  prepare(
    opcode: number,
    sqeFlags: number,
    ioprio: number,
    fd: number,
    offset: number,
    address: number,
    length: number,
    operationFlags: number,
    handler: number,
    operation: number,
    data: number,
  ): number {
    if (this.#toSubmit === this.entries) this.reserve(1);
    const sqes = this.#sqes;
    const at = (this.#tail & this.#sqMask) * SQE_WORDS;
    sqes[at] = opcode | (sqeFlags << 8) | (ioprio << 16);
    sqes[at + 1] = fd;
    sqes[at + 2] = offset >>> 0;
    sqes[at + 3] = (offset / TWO_TO_32) >>> 0;
    sqes[at + 4] = address >>> 0;
    sqes[at + 5] = (address / TWO_TO_32) >>> 0;
    sqes[at + 6] = length;
    sqes[at + 7] = operationFlags;
    sqes[at + 8] = data;
    sqes[at + 9] = (handler << 8) | operation;
    sqes[at + 10] = 0;
    sqes[at + 11] = 0;
    sqes[at + 12] = 0;
    sqes[at + 13] = 0;
    sqes[at + 14] = 0;
    sqes[at + 15] = 0;
    this.#tail = (this.#tail + 1) >>> 0;
    this.#toSubmit++;
    return at;
  }

  /**
   * Sets the address of the SQE that begins at word `at` to a place in a region. On the hot path, instead of an address as
   * a parameter: a number above 2^31 is boxed whenever a call is not inlined.
   */
  pointTo(at: number, region: Region, offset: number): void {
    const address = region.address + offset;
    this.#sqes[at + 4] = address >>> 0;
    this.#sqes[at + 5] = (address / TWO_TO_32) >>> 0;
  }

  /** The mapped SQEs as words, for callers that add to what `prepare` wrote. */
  get sqes(): Uint32Array {
    return this.#sqes;
  }

  send(
    fd: number,
    region: Region,
    offset: number,
    lengthBytes: number,
    messageFlags: number,
    sqeFlags: number,
    handler: number,
    operation: number,
    data: number,
  ): void {
    const at = this.prepare(
      IoringOp.SEND,
      sqeFlags,
      0,
      fd,
      0,
      0,
      lengthBytes,
      messageFlags,
      handler,
      operation,
      data,
    );
    this.pointTo(at, region, offset);
  }

  receive(
    fd: number,
    region: Region,
    offset: number,
    lengthBytes: number,
    messageFlags: number,
    sqeFlags: number,
    handler: number,
    operation: number,
    data: number,
  ): void {
    const at = this.prepare(
      IoringOp.RECV,
      sqeFlags,
      0,
      fd,
      0,
      0,
      lengthBytes,
      messageFlags,
      handler,
      operation,
      data,
    );
    this.pointTo(at, region, offset);
  }

  /** fdatasync(2). */
  dataSync(fd: number, sqeFlags: number, handler: number, operation: number, data: number): void {
    this.prepare(IoringOp.FSYNC, sqeFlags, 0, fd, 0, 0, 0, IORING_FSYNC_DATASYNC, handler, operation, data);
  }

  /** fallocate(2): `mode` as FALLOC_FL_*. */
  fallocate(
    fd: number,
    mode: number,
    offset: number,
    lengthBytes: number,
    sqeFlags: number,
    handler: number,
    operation: number,
    data: number,
  ): void {
    // io_uring takes the length in `addr` and the mode in `len` (io_uring/sync.c, io_fallocate_prep).
    this.prepare(IoringOp.FALLOCATE, sqeFlags, 0, fd, offset, lengthBytes, mode, 0, handler, operation, data);
  }

  nop(handler: number, operation: number, data: number): void {
    this.prepare(IoringOp.NOP, 0, 0, -1, 0, 0, 0, 0, handler, operation, data);
  }

  /** Cancels the operations on a descriptor, all of them. */
  cancelAll(fd: number, handler: number, operation: number, data: number): void {
    const CANCEL_ALL_BY_FD = 3; // IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_FD
    this.prepare(IoringOp.ASYNC_CANCEL, 0, 0, fd, 0, 0, 0, CANCEL_ALL_BY_FD, handler, operation, data);
  }

  /** SQEs written so far, modulo 2^32; with `hasTaken` it tells whether the kernel has one of them. */
  get writtenCount(): number {
    return this.#tail;
  }

  /** Whether the kernel has taken every SQE that was written when `writtenCount` was this. */
  hasTaken(writtenCount: number): boolean {
    return ((this.#tail - this.#toSubmit - writtenCount) | 0) >= 0;
  }

  /** Pending SQEs that the next `enter` will submit. */
  get pendingCount(): number {
    return this.#toSubmit;
  }

  /** Submits without waiting. */
  submit(): void {
    this.enter(0, 0);
  }

  /**
   * Submits what is pending and waits for `minComplete` completions, at most `timeoutMs` (negative: without bound).
   * A signal or the end of the wait are no errors; anything else throws KernelError.
   */
  enter(minComplete: number, timeoutMs: number): void {
    this.enterUs(minComplete, timeoutMs < 0 ? -1 : timeoutMs * 1000, 0);
  }

  /**
   * The same with microseconds, of which up to `pollUs` are spent on the processor instead of asleep (RingOptions.clock).
   * Whole numbers: others are allocated.
   */
  enterUs(minComplete: number, timeoutUs: number, pollUs: number): void {
    const words = this.#words;
    words[this.#sqTail] = this.#tail;
    const result = native.ioUringEnter(this.fd, this.#toSubmit, minComplete, timeoutUs, pollUs);
    this.enterCount += this.#record === null ? 1 : this.#recordWords[CALLS_WORD]!;
    // The head tells what the kernel took, also when the wait that followed ended with an error.
    const left = (this.#tail - words[this.#sqHead]!) >>> 0;
    this.submittedCount += this.#toSubmit - left;
    this.#toSubmit = left;
    if (result < 0 && result !== -ETIME && result !== -EINTR && result !== -EAGAIN && result !== -EBUSY) {
      checkResult('io_uring_enter', result);
    }
  }

  /** Of the last `enter` that was to wait, microseconds up to its return; 0 without `RingOptions.clock`. */
  get waitedUs(): number {
    return this.#recordWords[WAITED_US_WORD]!;
  }

  /** Whether completions wait to be dispatched. */
  get hasCompletions(): boolean {
    return this.#words[this.#cqHead] !== this.#words[this.#cqTail];
  }

  /** Hands every completion that is there to its handler; returns how many. Handlers may write SQEs. */
  dispatch(): number {
    const words = this.#words;
    let dispatched = 0;
    for (;;) {
      let head = words[this.#cqHead]!;
      const tail = words[this.#cqTail]!;
      if (head === tail) {
        if ((words[this.#sqFlags]! & IORING_SQ_CQ_OVERFLOW) === 0) break;
        // The kernel keeps what did not fit and hands it over at the next `enter`.
        this.enter(0, 0);
        if (words[this.#cqTail] === head) break;
        continue;
      }
      while (head !== tail) {
        const at = this.#cqes + (head & this.#cqMask) * CQE_WORDS;
        const data = words[at]!;
        const target = words[at + 1]!;
        const result = words[at + 2]! | 0;
        const flags = words[at + 3]!;
        head = (head + 1) >>> 0;
        // Given back before the handler runs: the handler may submit, and the kernel then needs the room.
        words[this.#cqHead] = head;
        dispatched++;
        const handler = this.#handlers[target >>> 8];
        if (handler !== null && handler !== undefined) handler.complete(target & 0xff, data, result, flags);
      }
    }
    this.completedCount += dispatched;
    return dispatched;
  }

  /** Registers `count` empty buffer slots, for ublk or for `registerBuffer`. Once per ring. */
  registerSparseBuffers(count: number): void {
    // struct io_uring_rsrc_register: nr, flags, resv2, data, tags.
    const argument = new Uint32Array([count, IORING_RSRC_REGISTER_SPARSE, 0, 0, 0, 0, 0, 0]);
    native.ioUringRegister(this.fd, IoringRegister.BUFFERS2, argument, argument.byteLength);
  }

  /** Puts own memory into a buffer slot. */
  registerBuffer(index: number, address: number, lengthBytes: number): void {
    // struct io_uring_rsrc_update2 {offset, resv, data, tags, nr, resv2}; `data` points to the iovec, which needs
    // memory of a known address.
    const iovec = allocateRegion(PAGE_SIZE_BYTES);
    new BigUint64Array(iovec.buffer).set([BigInt(address), BigInt(lengthBytes)]);
    const update = new BigUint64Array([BigInt(index), BigInt(iovec.address), 0n, 1n]);
    native.ioUringRegister(this.fd, IoringRegister.BUFFERS_UPDATE, update, update.byteLength);
    iovec.release();
  }

  /** Closes the ring. What is in flight is cancelled by the kernel; its memory must stay mapped until then. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#record !== null) {
      native.ioUringRecord(0);
      this.#record.release();
    }
    this.#queues.release();
    this.#sqeRegion.release();
    native.close(this.fd);
  }
}
