/** A plain NBD client over node:net, for tests: simple replies, any bytes on request. */
import { connect, type Socket } from 'node:net';
import { ClientHandshake } from '@blockwire/proto/nbd/client-handshake.ts';
import { NBD_CMD_READ, NBD_CMD_WRITE, NBD_SIMPLE_REPLY_MAGIC } from '@blockwire/proto/nbd/constants.ts';
import { replyCookieLow, replyMagic, simpleReplyError } from '@blockwire/proto/nbd/reply.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';

export interface Reply {
  readonly error: number;
  readonly cookie: number;
  readonly data: Buffer;
}

/** Bytes of a socket, read by count. */
export class SocketReader {
  readonly socket: Socket;
  #pending: Buffer = Buffer.alloc(0);
  #ended = false;
  #wake: (() => void) | null = null;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk) => {
      this.#pending = Buffer.concat([this.#pending, chunk as Buffer]);
      this.#wake?.();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake?.();
    };
    socket.on('end', end);
    socket.on('close', end);
    socket.on('error', end);
  }

  /** Exactly that many bytes, or null when the peer closed before. */
  async read(count: number): Promise<Buffer | null> {
    while (this.#pending.length < count) {
      if (this.#ended) return null;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const taken = this.#pending.subarray(0, count);
    this.#pending = this.#pending.subarray(count);
    return taken;
  }

  /** Whatever is there, at least one byte; null at the end. */
  async readSome(): Promise<Buffer | null> {
    const first = await this.read(1);
    if (first === null) return null;
    const rest = this.#pending;
    this.#pending = Buffer.alloc(0);
    return Buffer.concat([first, rest]);
  }
}

export async function connectSocket(address: string): Promise<SocketReader> {
  const at = address.lastIndexOf(':');
  const socket = connect(Number(address.slice(at + 1)), address.slice(0, at));
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', reject);
  });
  socket.setNoDelay(true);
  return new SocketReader(socket);
}

/** Ends the handshake with GO; throws what the server says. */
export async function openExport(address: string, exportName: string): Promise<NbdClient> {
  const reader = await connectSocket(address);
  const handshake = new ClientHandshake({ exportName, structuredReplies: false });
  let pending = Buffer.alloc(0);
  while (handshake.result === null) {
    const more = await reader.readSome();
    if (more === null) throw new Error('the server closed the connection in the handshake');
    pending = Buffer.concat([pending, more]);
    pending = pending.subarray(handshake.consume(pending));
    const output = handshake.takeOutput();
    if (output.length > 0) reader.socket.write(output);
    if (handshake.failure !== null) {
      reader.socket.destroy();
      throw new Error(handshake.failure.message);
    }
  }
  return new NbdClient(reader);
}

export class NbdClient {
  readonly #reader: SocketReader;
  #cookie = 0;

  constructor(reader: SocketReader) {
    this.#reader = reader;
  }

  get socket(): Socket {
    return this.#reader.socket;
  }

  /** Sends a request without waiting; returns its cookie. */
  send(
    type: number,
    offset: number,
    length: number,
    options: { flags?: number; data?: Uint8Array } = {},
  ): number {
    const cookie = ++this.#cookie;
    const header = new Uint8Array(28);
    encodeRequest(new DataView(header.buffer), 0, options.flags ?? 0, type, 0x1234, cookie, offset, length);
    this.socket.write(options.data === undefined ? header : Buffer.concat([header, options.data]));
    return cookie;
  }

  /** The next reply; null when the server closed. @param length bytes of data if it is a successful read's */
  async reply(length = 0): Promise<Reply | null> {
    const header = await this.#reader.read(16);
    if (header === null) return null;
    const view = new DataView(header.buffer, header.byteOffset, 16);
    if (replyMagic(view, 0) !== NBD_SIMPLE_REPLY_MAGIC) throw new Error('not a simple reply');
    const error = simpleReplyError(view, 0);
    const cookie = replyCookieLow(view, 0);
    const data = error === 0 && length > 0 ? await this.#reader.read(length) : Buffer.alloc(0);
    return data === null ? null : { error, cookie, data };
  }

  /** One request and its error number; -1 when the server closed the connection. */
  async error(
    type: number,
    offset: number,
    length: number,
    options: { flags?: number; data?: Uint8Array } = {},
  ): Promise<number> {
    const cookie = this.send(type, offset, length, options);
    const reply = await this.reply();
    if (reply !== null && reply.cookie !== cookie) throw new Error('the reply has another cookie');
    return reply?.error ?? -1;
  }

  write(offset: number, data: Uint8Array, flags = 0): Promise<number> {
    return this.error(NBD_CMD_WRITE, offset, data.length, { flags, data });
  }

  async read(offset: number, length: number): Promise<Buffer> {
    this.send(NBD_CMD_READ, offset, length);
    const reply = await this.reply(length);
    if (reply === null || reply.error !== 0) throw new Error(`read failed: ${reply?.error ?? 'closed'}`);
    return reply.data;
  }

  close(): void {
    this.socket.destroy();
  }
}
