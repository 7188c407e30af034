/**
 * An NBD client for harnesses: many requests in flight, each a promise by its cookie, in every reply mode. Strict: whatever
 * the specification does not allow a server to answer ends the session with an error.
 */
import { connect, type Socket } from 'node:net';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { HandshakeOutput, OptionReader, writeOption } from '@blockwire/proto/nbd/options.ts';
import * as reply from '@blockwire/proto/nbd/reply.ts';
import { encodeExtendedRequest, encodeRequest, readUint64 } from '@blockwire/proto/nbd/request.ts';

const GREETING_BYTES = 18;
const OPTION_REPLY_BYTES = 20;
const PAYLOAD_BYTES_MAX = 64 * 2 ** 20;

export interface Extent {
  readonly lengthBytes: number;
  readonly flags: number;
}

export interface Answer {
  /** An NBD error number; 0 is success. */
  readonly error: number;
  /** Of a successful read. */
  readonly data: Buffer;
  /** Of a successful block status, by context id. */
  readonly extents: ReadonlyMap<number, readonly Extent[]>;
}

export interface SessionOptions {
  readonly exportName: string;
  readonly mode?: 'simple' | 'structured' | 'extended';
  readonly metaContexts?: readonly string[];
}

export interface RequestOptions {
  readonly flags?: number;
  readonly data?: Uint8Array;
}

interface Pending {
  readonly type: number;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: Error) => void;
  data: Buffer | null;
  receivedBytes: number;
  error: number;
  extents: Map<number, Extent[]>;
}

/** The session ended: the server hung up, broke the protocol, or `destroy` was called. */
export class SessionEnded extends Error {}

/** Received bytes, taken by count without copying more than what is taken. */
class ByteQueue {
  readonly #chunks: Buffer[] = [];
  lengthBytes = 0;

  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.lengthBytes += chunk.length;
  }

  /** The first bytes, left in place; call only when they are there. */
  peek(count: number): Buffer {
    if (this.#chunks[0]!.length < count) this.#gather(count);
    return this.#chunks[0]!.subarray(0, count);
  }

  take(count: number): Buffer {
    if (count === 0) return Buffer.alloc(0);
    const taken = this.peek(count);
    const rest = this.#chunks[0]!.subarray(count);
    if (rest.length === 0) this.#chunks.shift();
    else this.#chunks[0] = rest;
    this.lengthBytes -= count;
    return taken;
  }

  #gather(count: number): void {
    let have = 0;
    let upTo = 0;
    while (have < count) have += this.#chunks[upTo++]!.length;
    this.#chunks.splice(0, upTo, Buffer.concat(this.#chunks.slice(0, upTo)));
  }
}

export class NbdSession {
  readonly socket: Socket;
  /** Resolves when the session is over, with the reason. */
  readonly closed: Promise<string>;
  sizeBytes = 0;
  transmissionFlags = 0;
  /** Names of the selected contexts by their ids. */
  readonly contexts = new Map<number, string>();
  readonly #queue = new ByteQueue();
  readonly #pending = new Map<number, Pending>();
  readonly #end: (reason: string) => void;
  #mode: reply.ReplyMode = reply.REPLY_SIMPLE;
  #serving = false;
  #wake: (() => void) | null = null;
  #reason: string | null = null;
  #cookie = 0;

  /** Connects and negotiates. Throws SessionEnded with what the server said. */
  static async open(address: string, options: SessionOptions): Promise<NbdSession> {
    const at = address.lastIndexOf(':');
    const session = new NbdSession(connect(Number(address.slice(at + 1)), address.slice(0, at)));
    try {
      await session.#negotiate(options);
    } catch (error) {
      session.destroy('the negotiation failed');
      throw error;
    }
    session.#serving = true;
    session.#parse();
    return session;
  }

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.setNoDelay(true);
    const { promise, resolve } = Promise.withResolvers<string>();
    this.closed = promise;
    this.#end = (reason) => {
      if (this.#reason !== null) return;
      this.#reason = reason;
      socket.destroy();
      for (const pending of this.#pending.values()) pending.reject(new SessionEnded(reason));
      this.#pending.clear();
      this.#wake?.();
      resolve(reason);
    };
    socket.on('data', (chunk: Buffer) => {
      this.#queue.push(chunk);
      if (this.#serving) this.#parse();
      else this.#wake?.();
    });
    socket.on('error', (error) => this.#end(error.message));
    socket.on('end', () => this.#end('the server hung up'));
    socket.on('close', () => this.#end('closed'));
  }

  /** Why it is over; null while it is not. */
  get reason(): string | null {
    return this.#reason;
  }

  get inFlight(): number {
    return this.#pending.size;
  }

  destroy(reason = 'destroyed'): void {
    this.#end(reason);
  }

  /** Sends a request. Rejects with SessionEnded when the session is over before its answer. */
  request(
    type: number,
    offset: number,
    lengthBytes: number,
    { flags = 0, data }: RequestOptions = {},
  ): Promise<Answer> {
    if (this.#reason !== null) return Promise.reject(new SessionEnded(this.#reason));
    const cookie = ++this.#cookie;
    const extended = this.#mode === reply.REPLY_EXTENDED;
    const header = Buffer.alloc(extended ? nbd.EXTENDED_REQUEST_SIZE_BYTES : nbd.REQUEST_SIZE_BYTES);
    const view = new DataView(header.buffer, header.byteOffset, header.length);
    if (extended) {
      const allFlags = flags | (data === undefined ? 0 : nbd.NBD_CMD_FLAG_PAYLOAD_LEN);
      encodeExtendedRequest(view, 0, allFlags, type, 0x5e55104e, cookie, offset, lengthBytes);
    } else {
      encodeRequest(view, 0, flags, type, 0x5e55104e, cookie, offset, lengthBytes);
    }
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    const none = { data: null, receivedBytes: 0, error: 0, extents: new Map<number, Extent[]>() };
    this.#pending.set(cookie, { type, offset, lengthBytes, resolve, reject, ...none });
    this.socket.cork();
    this.socket.write(header);
    if (data !== undefined) this.socket.write(data);
    this.socket.uncork();
    return promise;
  }

  // Negotiation

  async #read(count: number): Promise<Buffer> {
    while (this.#queue.lengthBytes < count) {
      if (this.#reason !== null) throw new SessionEnded(this.#reason);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#queue.take(count);
  }

  async #negotiate({ exportName, mode = 'simple', metaContexts = [] }: SessionOptions): Promise<void> {
    const greeting = await this.#read(GREETING_BYTES);
    if (greeting.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT') throw new SessionEnded('no NBD server');
    this.socket.write(Uint8Array.of(0, 0, 0, nbd.NBD_FLAG_C_FIXED_NEWSTYLE | nbd.NBD_FLAG_C_NO_ZEROES));
    if (mode === 'structured') {
      await this.#option(nbd.NBD_OPT_STRUCTURED_REPLY, new Uint8Array(0));
      this.#mode = reply.REPLY_STRUCTURED;
    } else if (mode === 'extended') {
      await this.#option(nbd.NBD_OPT_EXTENDED_HEADERS, new Uint8Array(0));
      this.#mode = reply.REPLY_EXTENDED;
    }
    if (metaContexts.length > 0) {
      const query = new HandshakeOutput().countedString(exportName).uint32(metaContexts.length);
      for (const name of metaContexts) query.countedString(name);
      for (const data of await this.#option(nbd.NBD_OPT_SET_META_CONTEXT, query.take())) {
        const id = new OptionReader(data).uint32() ?? 0;
        this.contexts.set(id, data.toString('utf8', 4));
      }
    }
    const go = new HandshakeOutput().countedString(exportName).uint16(0).take();
    for (const data of await this.#option(nbd.NBD_OPT_GO, go)) {
      if (data.readUInt16BE(0) !== nbd.NBD_INFO_EXPORT) continue;
      this.sizeBytes = readUint64(new DataView(data.buffer, data.byteOffset, data.length), 2);
      this.transmissionFlags = data.readUInt16BE(10);
    }
  }

  /** Sends an option; returns the data of its replies before the acknowledgement. */
  async #option(option: number, data: Uint8Array): Promise<Buffer[]> {
    const output = new HandshakeOutput();
    writeOption(output, option, data);
    this.socket.write(output.take());
    const replies: Buffer[] = [];
    for (;;) {
      const header = await this.#read(OPTION_REPLY_BYTES);
      const type = header.readUInt32BE(12);
      const body = Buffer.from(await this.#read(header.readUInt32BE(16)));
      if (header.readUInt32BE(8) !== option) throw new SessionEnded('the reply to another option');
      if (type === nbd.NBD_REP_ACK) return replies;
      if (type >= nbd.NBD_REP_FLAG_ERROR) {
        throw new SessionEnded(`option ${option}: 0x${type.toString(16)} ${body.toString()}`);
      }
      replies.push(body);
    }
  }

  // Replies

  #parse(): void {
    try {
      while (this.#reason === null && this.#parseOne()) {
        // One reply or chunk each.
      }
    } catch (error) {
      this.#end(error instanceof Error ? error.message : String(error));
    }
  }

  #parseOne(): boolean {
    if (this.#queue.lengthBytes < nbd.SIMPLE_REPLY_SIZE_BYTES) return false;
    const magic = this.#queue.peek(4).readUInt32BE(0);
    if (magic === nbd.NBD_SIMPLE_REPLY_MAGIC) return this.#parseSimple();
    const extended = this.#mode === reply.REPLY_EXTENDED;
    const expected = extended ? nbd.NBD_EXTENDED_REPLY_MAGIC : nbd.NBD_STRUCTURED_REPLY_MAGIC;
    if (magic !== expected || this.#mode === reply.REPLY_SIMPLE) {
      throw new SessionEnded(`a reply with the magic 0x${magic.toString(16)}`);
    }
    const headerBytes = extended ? nbd.EXTENDED_REPLY_SIZE_BYTES : nbd.STRUCTURED_REPLY_SIZE_BYTES;
    if (this.#queue.lengthBytes < headerBytes) return false;
    const header = this.#queue.peek(headerBytes);
    const view = new DataView(header.buffer, header.byteOffset, headerBytes);
    const lengthBytes = extended ? reply.extendedChunkLength(view, 0) : reply.structuredChunkLength(view, 0);
    if (lengthBytes < 0 || lengthBytes > PAYLOAD_BYTES_MAX) throw new SessionEnded('a chunk without bound');
    if (this.#queue.lengthBytes < headerBytes + lengthBytes) return false;
    const flags = reply.chunkFlags(view, 0);
    const type = reply.chunkType(view, 0);
    const { cookie, pending } = this.#pendingOf(view);
    if (extended && readUint64(view, 16) !== pending.offset)
      throw new SessionEnded('a chunk with another offset');
    this.#queue.take(headerBytes);
    this.#chunk(pending, type, this.#queue.take(lengthBytes));
    if ((flags & nbd.NBD_REPLY_FLAG_DONE) !== 0) this.#settle(cookie, pending);
    return true;
  }

  #parseSimple(): boolean {
    const header = this.#queue.peek(nbd.SIMPLE_REPLY_SIZE_BYTES);
    const view = new DataView(header.buffer, header.byteOffset, header.length);
    const { cookie, pending } = this.#pendingOf(view);
    const error = reply.simpleReplyError(view, 0);
    const isRead = pending.type === nbd.NBD_CMD_READ;
    if (this.#mode === reply.REPLY_EXTENDED || (isRead && this.#mode !== reply.REPLY_SIMPLE)) {
      throw new SessionEnded('a simple reply where chunks were agreed');
    }
    const payloadBytes = isRead && error === 0 ? pending.lengthBytes : 0;
    if (this.#queue.lengthBytes < header.length + payloadBytes) return false;
    this.#queue.take(header.length);
    pending.error = error;
    pending.data = Buffer.from(this.#queue.take(payloadBytes));
    pending.receivedBytes = payloadBytes;
    this.#settle(cookie, pending);
    return true;
  }

  #pendingOf(view: DataView): { cookie: number; pending: Pending } {
    const cookie = reply.replyCookieLow(view, 0);
    const pending = this.#pending.get(cookie);
    if (pending === undefined || reply.replyCookieHigh(view, 0) !== 0x5e55104e) {
      throw new SessionEnded('a reply to a request that is not open');
    }
    return { cookie, pending };
  }

  #chunk(pending: Pending, type: number, payload: Buffer): void {
    const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
    switch (type) {
      case nbd.NBD_REPLY_TYPE_NONE:
        break;
      case nbd.NBD_REPLY_TYPE_ERROR:
      case nbd.NBD_REPLY_TYPE_ERROR_OFFSET:
        pending.error ||= reply.chunkError(view, 0);
        break;
      case nbd.NBD_REPLY_TYPE_OFFSET_DATA:
        this.#place(pending, reply.chunkDataOffset(view, 0), payload.subarray(8));
        break;
      case nbd.NBD_REPLY_TYPE_OFFSET_HOLE:
        this.#place(pending, reply.chunkDataOffset(view, 0), Buffer.alloc(reply.chunkHoleLength(view, 0)));
        break;
      case nbd.NBD_REPLY_TYPE_BLOCK_STATUS:
        this.#extents(pending, payload, 4, 8, (at) => [
          payload.readUInt32BE(at),
          payload.readUInt32BE(at + 4),
        ]);
        break;
      case nbd.NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
        this.#extents(pending, payload, 8, 16, (at) => [readUint64(view, at), readUint64(view, at + 8)]);
        break;
      default:
        throw new SessionEnded(`a chunk of type ${type}`);
    }
  }

  #place(pending: Pending, offset: number, data: Buffer): void {
    const at = offset - pending.offset;
    if (pending.type !== nbd.NBD_CMD_READ || at < 0 || at + data.length > pending.lengthBytes) {
      throw new SessionEnded('data that was not asked for');
    }
    pending.data ??= Buffer.alloc(pending.lengthBytes);
    data.copy(pending.data, at);
    pending.receivedBytes += data.length;
  }

  #extents(
    pending: Pending,
    payload: Buffer,
    headBytes: number,
    extentBytes: number,
    extentAt: (at: number) => readonly [number, number],
  ): void {
    const extents: Extent[] = [];
    for (let at = headBytes; at + extentBytes <= payload.length; at += extentBytes) {
      const [lengthBytes, flags] = extentAt(at);
      extents.push({ lengthBytes, flags });
    }
    pending.extents.set(payload.readUInt32BE(0), extents);
  }

  #settle(cookie: number, pending: Pending): void {
    this.#pending.delete(cookie);
    const { error, extents } = pending;
    const data = pending.data ?? Buffer.alloc(0);
    if (pending.type === nbd.NBD_CMD_READ && error === 0 && pending.receivedBytes !== pending.lengthBytes) {
      const short = new SessionEnded(
        `a read of ${pending.lengthBytes} bytes answered with ${pending.receivedBytes}`,
      );
      pending.reject(short);
      throw short;
    }
    pending.resolve({ error, data, extents });
  }
}
