/**
 * NodeIo without a kernel: files and sockets in memory, completions in a seeded random order, writes taking effect only
 * when they complete, faults on request. Every error in ordering or ownership of memory shows as wrong content.
 */
import { native } from '@blockwire/native/native.ts';
import {
  type CompletionSink,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  type MappedWords,
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

/** A change of a file that no sync has made durable yet. */
interface Change {
  readonly fd: number;
  readonly offset: number;
  /** Order of completion. */
  readonly sequence: number;
  /** What is at `offset` when it has happened. */
  readonly content: () => Uint8Array;
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
const ENXIO = 6;
const BLOCK_BYTES = 4096;
const SECTOR_BYTES = 512;

export class SimulatedIo implements NodeIo {
  readonly memory: NodeMemory;
  readonly clock = new Float64Array(1);
  sink: CompletionSink | null = null;
  readonly files = new Map<number, Buffer>();
  readonly sockets = new Map<number, SimulatedSocket>();
  /** Errno that an operation fails with, or 0. */
  fault: Fault = () => 0;
  /** Files whose operations do not complete. */
  readonly stuck = new Set<number>();
  /** Without it, ranges are zeroed by punching and allocating. */
  canZeroRange = true;
  /** The longest transfer of one disk operation. */
  transferMax = Number.POSITIVE_INFINITY;
  /** Operations on files that have completed. */
  diskCount = 0;
  /** What survives for sure: each file as of its last sync. */
  readonly #durable = new Map<number, Buffer>();
  readonly #mapped = new Set<number>();
  #changes: Change[] = [];
  #sequence = 0;
  /** Per file and sector: the newest change that is durable. */
  readonly #newest = new Map<number, Float64Array>();
  /** Writes that have not completed; a crash may find any part of them done. */
  readonly #underWay = new Set<Change>();
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

  read(fd: number, block: number, at: number, length: number, slot: number): void {
    const offset = block * BLOCK_BYTES;
    this.#disk('read', fd, slot, () => {
      const file = this.#file(fd, offset, at, length);
      const count = Math.min(length, this.transferMax, Math.max(0, file.length - offset));
      this.memory.bytes.set(file.subarray(offset, offset + count), at);
      return count;
    });
  }

  write(fd: number, block: number, at: number, length: number, durable: boolean, slot: number): void {
    const offset = block * BLOCK_BYTES;
    const sequence = Number.MAX_SAFE_INTEGER;
    const change = { fd, offset, sequence, content: () => this.memory.bytes.subarray(at, at + length) };
    this.#underWay.add(change);
    this.#disk(
      'write',
      fd,
      slot,
      () => {
        const file = this.#file(fd, offset, at, length);
        const count = Math.min(length, this.transferMax);
        const content = this.memory.bytes.slice(at, at + count);
        file.set(content, offset);
        const done = { fd, offset, sequence: ++this.#sequence, content: () => content };
        if (durable) this.#apply(done, this.#durableOf(fd), () => true);
        else this.#changes.push(done);
        return count;
      },
      () => this.#underWay.delete(change),
    );
  }

  dataSync(fd: number, slot: number): void {
    // It covers what had completed when it began.
    const covered = new Set(this.#changes.filter((change) => change.fd === fd));
    const mapped = this.#mapped.has(fd) ? Buffer.from(this.files.get(fd)!) : null;
    this.#disk('sync', fd, slot, () => {
      const durable = this.#durableOf(fd);
      if (mapped !== null) durable.set(mapped);
      for (const change of covered) this.#apply(change, durable, () => true);
      this.#changes = this.#changes.filter((change) => !covered.has(change));
      return 0;
    });
  }

  /** Changes a file from outside: durable at once. */
  setFile(fd: number, content: Buffer): void {
    this.files.set(fd, content);
    this.#durable.set(fd, Buffer.from(content));
  }

  /** Lengthens a file with zeroes, durably. */
  growFile(fd: number, length: number): void {
    const durable = Buffer.alloc(length);
    this.#durableOf(fd).copy(durable);
    const current = Buffer.alloc(length);
    this.files.get(fd)!.copy(current);
    this.files.set(fd, current);
    this.#durable.set(fd, durable);
  }

  /**
   * The files as a crash now leaves them: what was synced, and of everything else any part: whole, lost, or torn between
   * sectors; of mapped files any pages.
   */
  crash(): Map<number, Buffer> {
    const images = new Map<number, Buffer>();
    for (const [fd, file] of this.files) {
      const image = Buffer.from(this.#durableOf(fd));
      if (this.#mapped.has(fd)) {
        for (let at = 0; at < image.length; at += BLOCK_BYTES) {
          if (this.#random() % 2 === 0) file.copy(image, at, at, Math.min(at + BLOCK_BYTES, image.length));
        }
      }
      images.set(fd, image);
    }
    for (const change of [...this.#changes, ...this.#underWay]) {
      const fate = this.#random() % 3;
      if (fate === 0) continue;
      this.#apply(change, images.get(change.fd)!, () => fate === 1 || this.#random() % 2 === 0);
    }
    return images;
  }

  /** Sector by sector, but never over something newer that is durable. */
  #apply(change: Change, image: Buffer, chosen: () => boolean): void {
    const { fd, offset, sequence } = change;
    const bytes = change.content();
    const newest =
      this.#newest.get(fd) ?? new Float64Array(2 * (this.files.get(fd)!.length / SECTOR_BYTES) + 64);
    this.#newest.set(fd, newest);
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
      const sector = (offset + at) / SECTOR_BYTES;
      if (sequence < newest[sector]! || !chosen()) continue;
      image.set(bytes.subarray(at, at + SECTOR_BYTES), offset + at);
      if (image === this.#durable.get(fd)) newest[sector] = sequence;
    }
  }

  #durableOf(fd: number): Buffer {
    let durable = this.#durable.get(fd);
    if (durable === undefined) {
      durable = Buffer.alloc(this.files.get(fd)!.length);
      this.#durable.set(fd, durable);
    }
    return durable;
  }

  seekData(fd: number, offset: number): number {
    return this.#seek(fd, offset, (isZero) => !isZero) ?? -ENXIO;
  }

  seekHole(fd: number, offset: number): number {
    return this.#seek(fd, offset, (isZero) => isZero) ?? this.files.get(fd)!.length;
  }

  /** Blocks of zeroes are the holes here. */
  #seek(fd: number, offset: number, wanted: (isZero: boolean) => boolean): number | undefined {
    const file = this.files.get(fd)!;
    for (let at = offset; at < file.length; at += BLOCK_BYTES - (at % BLOCK_BYTES)) {
      const block = at - (at % BLOCK_BYTES);
      if (wanted(file.subarray(block, block + BLOCK_BYTES).every((byte) => byte === 0))) return at;
    }
    return undefined;
  }

  mapWords(fd: number, count: number): MappedWords {
    const file = this.files.get(fd)!;
    this.#mapped.add(fd);
    return {
      words: new Uint32Array(file.buffer, file.byteOffset, count),
      faultCount: () => 0,
      release: () => undefined,
    };
  }

  checksumBlocks(addresses: Float64Array, count: number, out: Uint32Array): void {
    for (let i = 0; i < count; i++) {
      const at = addresses[i]! - ADDRESS_BASE;
      out[i] = native.crc32c(this.memory.bytes.subarray(at, at + BLOCK_BYTES), 0);
    }
  }

  fallocate(fd: number, mode: number, block: number, blockCount: number, slot: number): void {
    const offset = block * BLOCK_BYTES;
    const length = blockCount * BLOCK_BYTES;
    this.#disk('fallocate', fd, slot, () => {
      if ((mode & FALLOC_FL_ZERO_RANGE) !== 0 && !this.canZeroRange) return -EOPNOTSUPP;
      if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) !== 0) {
        const file = this.files.get(fd)!;
        const count = Math.min(length, file.length - offset);
        if (count > 0) {
          file.fill(0, offset, offset + count);
          const zeroes = new Uint8Array(count);
          this.#changes.push({ fd, offset, sequence: ++this.#sequence, content: () => zeroes });
        }
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

  #disk(
    operation: Parameters<Fault>[0],
    fd: number,
    slot: number,
    run: () => number,
    before: () => void = () => undefined,
  ): void {
    this.#task(
      () => !this.stuck.has(fd),
      () => {
        before();
        this.diskCount++;
        const errno = this.fault(operation, fd);
        this.sink!.complete(OP_DISK, slot, errno > 0 ? -errno : run());
      },
    );
  }

  #task(ready: () => boolean, run: () => void): void {
    this.#tasks.push({ ready, run });
  }
}
