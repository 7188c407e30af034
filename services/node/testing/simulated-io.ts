/**
 * NodeIo without a kernel: files and sockets in memory, completions in a seeded random order, writes taking effect only
 * when they complete, faults on request. Every error in ordering or ownership of memory shows as wrong content.
 */
import {
  type CompletionSink,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  type NodeIo,
  type NodeMemory,
  OP_ACCEPT,
  OP_DISK,
  OP_RECEIVE,
  OP_RECEIVE_PAYLOAD,
  OP_SEND,
} from '../worker/node-io.ts';

/** mulberry32 */
export function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

interface Receive {
  readonly at: number;
  readonly length: number;
  readonly exact: boolean;
  readonly connection: number;
}

export class SimulatedSocket {
  /** What the client sent and the server has not received. */
  inbound = Buffer.alloc(0);
  /** What the server sent. */
  outbound = Buffer.alloc(0);
  clientClosed = false;
  serverClosed = false;
  /** While true, sends do not complete: the client does not read. */
  stuck = false;
  receive: Receive | null = null;
}

export type Fault = (operation: 'read' | 'write' | 'sync' | 'fallocate', fd: number) => number;

interface Task {
  readonly ready: () => boolean;
  readonly run: () => void;
}

const ADDRESS_BASE = 0x7f00_0000_0000;
const ECONNRESET = 104;
const EOPNOTSUPP = 95;

export class SimulatedIo implements NodeIo {
  readonly memory: NodeMemory;
  sink: CompletionSink | null = null;
  readonly files = new Map<number, Buffer>();
  readonly sockets = new Map<number, SimulatedSocket>();
  /** Errno that an operation fails with, or 0. */
  fault: Fault = () => 0;
  /** Without it, ranges are zeroed by punching and allocating. */
  canZeroRange = true;
  /** The longest transfer of one disk operation. */
  transferMax = Number.POSITIVE_INFINITY;
  readonly #random: () => number;
  readonly #tasks: Task[] = [];
  #backlog: number[] = [];
  #nextFd = 1000;

  constructor(memoryBytes: number, random: () => number) {
    const bytes = new Uint8Array(memoryBytes);
    this.memory = {
      bytes,
      words: new Uint32Array(bytes.buffer),
      view: new DataView(bytes.buffer),
      address: ADDRESS_BASE,
    };
    this.#random = random;
  }

  /** A client connects; the server gets it at its next accept. */
  connect(): SimulatedSocket {
    const socket = new SimulatedSocket();
    this.sockets.set(this.#nextFd, socket);
    this.#backlog.push(this.#nextFd++);
    return socket;
  }

  /** Completes one operation that can complete, chosen at random. False when there is none. */
  step(): boolean {
    const ready = this.#tasks.filter((task) => task.ready());
    if (ready.length === 0) return false;
    const task = ready[this.#random() % ready.length]!;
    this.#tasks.splice(this.#tasks.indexOf(task), 1);
    task.run();
    return true;
  }

  accept(): void {
    this.#task(
      () => this.#backlog.length > 0,
      () => this.sink!.complete(OP_ACCEPT, 0, this.#backlog.shift()!),
    );
  }

  receive(fd: number, at: number, length: number, connection: number): void {
    this.#receive(fd, { at, length, exact: false, connection });
  }

  receivePayload(fd: number, at: number, length: number, connection: number): void {
    this.#receive(fd, { at, length, exact: true, connection });
  }

  #receive(fd: number, wanted: Receive): void {
    const socket = this.sockets.get(fd)!;
    if (socket.receive !== null) throw new Error('two receives on one socket');
    if (wanted.length <= 0) throw new Error('a receive of no bytes');
    socket.receive = wanted;
    const ended = (): boolean => socket.clientClosed || socket.serverClosed;
    const enough = (): boolean => socket.inbound.length >= (wanted.exact ? wanted.length : 1);
    this.#task(
      () => enough() || ended(),
      () => {
        socket.receive = null;
        let count = Math.min(wanted.length, socket.inbound.length);
        if (!wanted.exact && count > 1) count = 1 + (this.#random() % count);
        this.memory.bytes.set(socket.inbound.subarray(0, count), wanted.at);
        socket.inbound = socket.inbound.subarray(count);
        this.sink!.complete(wanted.exact ? OP_RECEIVE_PAYLOAD : OP_RECEIVE, wanted.connection, count);
      },
    );
  }

  send(fd: number, at: number, length: number, connection: number): void {
    this.#send(fd, connection, () => [this.memory.bytes.subarray(at, at + length)]);
  }

  sendMessage(fd: number, at: number, connection: number): void {
    this.#send(fd, connection, () => {
      const { view, bytes } = this.memory;
      const position = (field: number): number => Number(view.getBigUint64(field, true)) - ADDRESS_BASE;
      const iovecs = position(at + 16);
      const count = Number(view.getBigUint64(at + 24, true));
      return Array.from({ length: count }, (_, i) => {
        const from = position(iovecs + i * 16);
        return bytes.subarray(from, from + Number(view.getBigUint64(iovecs + i * 16 + 8, true)));
      });
    });
  }

  /** The pieces are read when the send completes: memory must not change before. */
  #send(fd: number, connection: number, pieces: () => Uint8Array[]): void {
    const socket = this.sockets.get(fd)!;
    this.#task(
      () => !socket.stuck || socket.serverClosed || socket.clientClosed,
      () => {
        if (socket.serverClosed || socket.clientClosed) {
          this.sink!.complete(OP_SEND, connection, -ECONNRESET);
          return;
        }
        const all = Buffer.concat(pieces());
        socket.outbound = Buffer.concat([socket.outbound, all]);
        this.sink!.complete(OP_SEND, connection, all.length);
      },
    );
  }

  shutdown(fd: number): void {
    this.sockets.get(fd)!.serverClosed = true;
  }

  close(fd: number): void {
    const socket = this.sockets.get(fd)!;
    if (socket.receive !== null) throw new Error('closed with a receive in flight');
    socket.serverClosed = true;
    this.sockets.delete(fd);
  }

  read(fd: number, offset: number, at: number, length: number, slot: number): void {
    this.#disk('read', fd, slot, () => {
      const file = this.#file(fd, offset, at, length);
      const count = Math.min(length, this.transferMax, Math.max(0, file.length - offset));
      this.memory.bytes.set(file.subarray(offset, offset + count), at);
      return count;
    });
  }

  write(fd: number, offset: number, at: number, length: number, _durable: boolean, slot: number): void {
    this.#disk('write', fd, slot, () => {
      const file = this.#file(fd, offset, at, length);
      const count = Math.min(length, this.transferMax);
      file.set(this.memory.bytes.subarray(at, at + count), offset);
      return count;
    });
  }

  dataSync(fd: number, slot: number): void {
    this.#disk('sync', fd, slot, () => 0);
  }

  fallocate(fd: number, mode: number, offset: number, length: number, slot: number): void {
    this.#disk('fallocate', fd, slot, () => {
      if ((mode & FALLOC_FL_ZERO_RANGE) !== 0 && !this.canZeroRange) return -EOPNOTSUPP;
      if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) !== 0) {
        this.files
          .get(fd)!
          .subarray(offset, offset + length)
          .fill(0);
      }
      return 0;
    });
  }

  #file(fd: number, offset: number, at: number, length: number): Buffer {
    if (offset % 4096 !== 0 || at % 4096 !== 0 || length % 4096 !== 0 || length === 0) {
      throw new Error(`misaligned: offset ${offset}, memory ${at}, length ${length}`);
    }
    return this.files.get(fd)!;
  }

  #disk(operation: Parameters<Fault>[0], fd: number, slot: number, run: () => number): void {
    this.#task(
      () => true,
      () => {
        const errno = this.fault(operation, fd);
        this.sink!.complete(OP_DISK, slot, errno > 0 ? -errno : run());
      },
    );
  }

  #task(ready: () => boolean, run: () => void): void {
    this.#tasks.push({ ready, run });
  }
}
