/**
 * Which operations of io_uring move a registered buffer over a TCP socket on this kernel, tried out on loopback. There is no
 * flag that tells, and an older kernel says EINVAL only in mid-stream.
 */
import { errnoName } from '@blockwire/native/errors.ts';
import { allocateRegion, type Region } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import { type CompletionHandler, Ring } from '@blockwire/native/ring.ts';
import { encodeSockaddr, listenTcp, openTcp } from '@blockwire/native/sockets.ts';
import { IoringCqe, IoringOp, IoringRecvsend, MSG_WAITALL } from '@blockwire/native/uapi/io-uring.ts';

const PROBE_BYTES = 4096;
const BUFFER_INDEX = 0;
const WAIT_MS = 1000;
const LOOPBACK = '127.0.0.1';

export const SOCKET_RUNGS = ['send', 'sendZc', 'recv', 'readFixed'] as const;
export type SocketRung = (typeof SOCKET_RUNGS)[number];
/** By rung: null if it works, else why not. */
export type SocketReport = Readonly<Record<SocketRung, string | null>>;

/** Takes down results by operation number; the notifications of SEND_ZC apart. */
class Results implements CompletionHandler {
  readonly byOperation = new Map<number, number>();

  complete(operation: number, _data: number, result: number, flags: number): void {
    if ((flags & IoringCqe.NOTIF) === 0) this.byOperation.set(operation, result);
  }
}

class Probe {
  readonly #ring = new Ring({ entries: 8 });
  readonly #results = new Results();
  readonly #id = this.#ring.addHandler(this.#results);
  readonly #memory: Region = allocateRegion(3 * PROBE_BYTES);
  readonly #fds: number[] = [];
  #operation = 0;

  constructor() {
    this.#ring.registerSparseBuffers(1);
    this.#ring.registerBuffer(BUFFER_INDEX, this.#memory.address, 2 * PROBE_BYTES);
  }

  /** Two ends of one TCP connection. */
  connect(): [number, number] {
    const listener = listenTcp({ address: LOOPBACK, port: 0 }, 1);
    this.#fds.push(listener.fd);
    const { family, bytes } = encodeSockaddr({ address: LOOPBACK, port: listener.port });
    const client = openTcp(family);
    this.#fds.push(client);
    const address = this.#memory.address + 2 * PROBE_BYTES;
    this.#memory.bytes.set(bytes, 2 * PROBE_BYTES);
    this.#run(IoringOp.CONNECT, client, 0, bytes.length, address, 0, 0);
    const accepted = this.#run(IoringOp.ACCEPT, listener.fd, 0, 0, 0, 0, 0);
    if (accepted < 0) throw new Error(`accept: ${errnoName(-accepted)}`);
    this.#fds.push(accepted);
    return [client, accepted];
  }

  /** Moves the first half of the buffer out, or into the second half. Null if all of it moved, else why not. */
  move(opcode: number, fd: number, second: boolean, messageFlags: number): string | null {
    const isRead = opcode === IoringOp.READ_FIXED;
    const address = this.#memory.address + (second ? PROBE_BYTES : 0);
    const fixed = isRead ? 0 : IoringRecvsend.FIXED_BUF;
    const result = this.#run(opcode, fd, fixed, 0, address, PROBE_BYTES, messageFlags);
    if (result === PROBE_BYTES) return null;
    return result < 0 ? errnoName(-result) : `${result} of ${PROBE_BYTES} bytes`;
  }

  fill(value: number): void {
    this.#memory.bytes.fill(value, 0, PROBE_BYTES);
    this.#memory.bytes.fill(0, PROBE_BYTES, 2 * PROBE_BYTES);
  }

  arrived(value: number): boolean {
    return this.#memory.bytes.subarray(PROBE_BYTES, 2 * PROBE_BYTES).every((byte) => byte === value);
  }

  close(): void {
    this.#ring.close();
    for (const fd of this.#fds) native.close(fd);
  }

  #run(
    opcode: number,
    fd: number,
    ioprio: number,
    offset: number,
    address: number,
    length: number,
    flags: number,
  ): number {
    const operation = ++this.#operation;
    const at = this.#ring.prepare(
      opcode,
      0,
      ioprio,
      fd,
      offset,
      address,
      length,
      flags,
      this.#id,
      operation,
      0,
    );
    this.#ring.sqes[at + 10] = BUFFER_INDEX;
    // One after the other: an operation that waits could not be told from one that fails.
    for (let waits = 0; waits < 4 && !this.#results.byOperation.has(operation); waits++) {
      this.#ring.enter(1, WAIT_MS);
      this.#ring.dispatch();
    }
    return this.#results.byOperation.get(operation) ?? -62; // ETIME
  }
}

/** Each rung on a connection of its own. Throws KernelError where io_uring or sockets cannot be had at all. */
export function probeSockets(): SocketReport {
  const probe = new Probe();
  try {
    const trySend = (opcode: number): string | null =>
      probe.move(opcode, probe.connect()[0], false, MSG_WAITALL);
    const send = trySend(IoringOp.SEND);
    const sendZc = trySend(IoringOp.SEND_ZC);
    const tryReceive = (opcode: number, flags: number): string | null => {
      const [from, to] = probe.connect();
      probe.fill(0x42);
      const sender = send === null ? IoringOp.SEND : IoringOp.SEND_ZC;
      const failure = probe.move(sender, from, false, MSG_WAITALL) ?? probe.move(opcode, to, true, flags);
      return failure ?? (probe.arrived(0x42) ? null : 'other bytes arrived');
    };
    return {
      send,
      sendZc,
      recv: tryReceive(IoringOp.RECV, MSG_WAITALL),
      readFixed: tryReceive(IoringOp.READ_FIXED, 0),
    };
  } finally {
    probe.close();
  }
}
