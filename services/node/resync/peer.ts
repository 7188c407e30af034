/**
 * A client of another node's replica: reads, and block status. Structured replies, any number of requests at a time. On
 * the main thread's own sockets: it is no request's path, and its promises have no place in a data worker.
 */
import { connect, type Socket } from 'node:net';
import { ClientHandshake, type ClientHandshakeResult } from '@blockwire/proto/nbd/client-handshake.ts';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import {
  chunkDataOffset,
  chunkError,
  chunkFlags,
  chunkHoleLength,
  chunkType,
  replyCookieLow,
  replyMagic,
  structuredChunkLength,
} from '@blockwire/proto/nbd/reply.ts';
import { encodeRequest } from '@blockwire/proto/nbd/request.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';

/** A peer that says nothing for this long, while it is asked for something, is given up. */
const SILENCE_MS_MAX = 10_000;
const OFFSET_BYTES = 8;
/** Payload of a chunk that is not data: no server of ours sends more. */
const PAYLOAD_BYTES_MAX = 64 * 1024;
/** One request of block status. Below 2^32, and whole regions. */
const STATUS_BYTES_MAX = 2 ** 30;

export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly status: number;
}

interface Pending {
  readonly offset: number;
  /** Of a read: where its bytes go. */
  readonly into: Uint8Array | null;
  readonly extents: Extent[];
  readonly contextId: number;
  error: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class Peer {
  readonly sizeBytes: number;
  /** Bytes of data that were received. */
  receivedBytes = 0;
  readonly #socket: Socket;
  readonly #contextIds: ReadonlyMap<string, number>;
  readonly #pending = new Map<number, Pending>();
  #cookies = 0;
  #failure: Error | null = null;
  /** Of the reply that is being received: its head, until it is complete; then data that is still to come. */
  #head: Buffer = Buffer.alloc(0);
  #data: Uint8Array | null = null;
  #dataReply: { readonly cookie: number; readonly isDone: boolean } | null = null;

  private constructor(socket: Socket, result: ClientHandshakeResult) {
    this.#socket = socket;
    this.sizeBytes = result.sizeBytes;
    this.#contextIds = result.contextIds;
  }

  /**
   * Connects and opens an export. Rejects with BW_PEER_UNREACHABLE, also when the signal ends it.
   * @param address host:port
   */
  static async open(options: {
    readonly address: string;
    readonly exportName: string;
    readonly contexts: readonly string[];
    readonly signal: AbortSignal;
  }): Promise<Peer> {
    const { address, exportName, contexts, signal } = options;
    const { promise, resolve, reject } = Promise.withResolvers<Peer>();
    const at = address.lastIndexOf(':');
    const socket = connect(Number(address.slice(at + 1)), address.slice(0, at).replace(/^\[|\]$/g, ''));
    socket.setNoDelay(true);
    socket.setKeepAlive(true, SILENCE_MS_MAX);
    const handshake = new ClientHandshake({ exportName, structuredReplies: true, metaContexts: contexts });
    let peer: Peer | null = null;
    let received: Buffer = Buffer.alloc(0);
    const fail = (reason: string): void => {
      const error = new BlockwireError('BW_PEER_UNREACHABLE', `${address}: ${reason}`);
      socket.destroy();
      peer?.end(error);
      reject(error);
    };
    socket.setTimeout(SILENCE_MS_MAX, () => {
      if (peer === null || peer.isWaiting) fail('the peer is silent');
    });
    socket.on('error', (error) => fail(error.message));
    socket.on('close', () => fail('the connection ended'));
    const onAbort = (): void => fail(String(signal.reason));
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
    socket.on('close', () => signal.removeEventListener('abort', onAbort));
    socket.on('data', (bytes: Buffer) => {
      try {
        if (peer !== null) {
          peer.receive(bytes);
          return;
        }
        received = Buffer.concat([received, bytes]);
        received = received.subarray(handshake.consume(received));
        const output = handshake.takeOutput();
        if (output.length > 0) socket.write(output);
        if (handshake.failure !== null) fail(handshake.failure.message);
        if (handshake.result === null) return;
        if (!handshake.result.structuredReplies) throw new Error('it does not know structured replies');
        peer = new Peer(socket, handshake.result);
        resolve(peer);
        peer.receive(received);
      } catch (error) {
        fail(error instanceof Error ? error.message : String(error));
      }
    });
    return await promise;
  }

  /** Whether something is asked and not answered. */
  get isWaiting(): boolean {
    return this.#pending.size > 0;
  }

  /** Reads `into.length` bytes. Rejects with BW_PEER_UNREACHABLE, and with BW_IO when the peer cannot read them. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#ask(nbd.NBD_CMD_READ, offset, into.length, into, 0);
  }

  /** What a context says of a range. Rejects like `read`, and with BW_PROTOCOL when the peer does not know the context. */
  async status(context: string, offset: number, length: number): Promise<Extent[]> {
    const contextId = this.#contextIds.get(context);
    if (contextId === undefined) throw new BlockwireError('BW_PROTOCOL', `the peer does not know ${context}`);
    const extents: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const asked = Math.min(end - at, STATUS_BYTES_MAX);
      const answer = await this.#ask(nbd.NBD_CMD_BLOCK_STATUS, at, asked, null, contextId);
      if (answer.length === 0) throw new BlockwireError('BW_PROTOCOL', 'the peer told no block status');
      for (const extent of answer) {
        if (at >= end) break;
        const covered = Math.min(extent.length, end - at);
        extents.push({ offset: at, length: covered, status: extent.status });
        at += covered;
      }
    }
    return extents;
  }

  close(): void {
    this.#socket.destroy();
  }

  /** The connection is gone: everything that is asked fails. */
  end(error: Error): void {
    this.#failure ??= error;
    for (const pending of this.#pending.values()) pending.reject(this.#failure);
    this.#pending.clear();
  }

  /** Throws when the peer breaks the protocol. */
  receive(bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#data !== null) at += this.#receiveData(bytes.subarray(at), this.#data);
      else at += this.#receiveHead(bytes.subarray(at));
    }
  }

  #receiveData(bytes: Buffer, data: Uint8Array): number {
    const count = Math.min(bytes.length, data.length);
    data.set(bytes.subarray(0, count));
    this.receivedBytes += count;
    this.#data = count < data.length ? data.subarray(count) : null;
    if (this.#data === null && this.#dataReply !== null) {
      this.#chunkDone(this.#dataReply.cookie, this.#dataReply.isDone);
    }
    return count;
  }

  /** Of a chunk: its header, and its payload up to where data begins. */
  #receiveHead(bytes: Buffer): number {
    const before = this.#head.length;
    const take = (wanted: number): boolean => {
      const missing = wanted - this.#head.length;
      if (missing > 0) {
        const from = this.#head.length - before;
        this.#head = Buffer.concat([this.#head, bytes.subarray(from, from + missing)]);
      }
      return this.#head.length >= wanted;
    };
    if (take(nbd.STRUCTURED_REPLY_SIZE_BYTES) && take(this.#headBytes())) {
      const consumed = this.#head.length - before;
      const head = this.#head;
      this.#head = Buffer.alloc(0);
      this.#handle(new DataView(head.buffer, head.byteOffset, head.length));
      return consumed;
    }
    return this.#head.length - before;
  }

  #headBytes(): number {
    const view = new DataView(this.#head.buffer, this.#head.byteOffset, this.#head.length);
    if (replyMagic(view, 0) !== nbd.NBD_STRUCTURED_REPLY_MAGIC) throw new Error('a reply without its magic');
    const length = structuredChunkLength(view, 0);
    const isData = chunkType(view, 0) === nbd.NBD_REPLY_TYPE_OFFSET_DATA;
    if (isData ? length <= OFFSET_BYTES : length > PAYLOAD_BYTES_MAX)
      throw new Error('a chunk of a wrong length');
    return nbd.STRUCTURED_REPLY_SIZE_BYTES + (isData ? OFFSET_BYTES : length);
  }

  #handle(view: DataView): void {
    const cookie = replyCookieLow(view, 0);
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw new Error('a reply to nothing');
    const isDone = (chunkFlags(view, 0) & nbd.NBD_REPLY_FLAG_DONE) !== 0;
    const payload = nbd.STRUCTURED_REPLY_SIZE_BYTES;
    const length = structuredChunkLength(view, 0);
    switch (chunkType(view, 0)) {
      case nbd.NBD_REPLY_TYPE_OFFSET_DATA:
        this.#data = placeOf(pending, chunkDataOffset(view, payload), length - OFFSET_BYTES);
        this.#dataReply = { cookie, isDone };
        return;
      case nbd.NBD_REPLY_TYPE_OFFSET_HOLE:
        placeOf(pending, chunkDataOffset(view, payload), chunkHoleLength(view, payload)).fill(0);
        break;
      case nbd.NBD_REPLY_TYPE_BLOCK_STATUS:
        if (view.getUint32(payload) === pending.contextId) readExtents(view, payload + 4, pending);
        break;
      case nbd.NBD_REPLY_TYPE_ERROR:
      case nbd.NBD_REPLY_TYPE_ERROR_OFFSET:
        pending.error = chunkError(view, payload);
        break;
      default:
    }
    this.#chunkDone(cookie, isDone);
  }

  #chunkDone(cookie: number, isDone: boolean): void {
    if (!isDone) return;
    const pending = this.#pending.get(cookie)!;
    this.#pending.delete(cookie);
    if (pending.error === 0) pending.resolve();
    else pending.reject(new BlockwireError('BW_IO', `the peer fails with NBD error ${pending.error}`));
  }

  async #ask(
    type: number,
    offset: number,
    length: number,
    into: Uint8Array | null,
    contextId: number,
  ): Promise<Extent[]> {
    if (this.#failure !== null) throw this.#failure;
    const cookie = ++this.#cookies;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const pending: Pending = { offset, into, extents: [], contextId, error: 0, resolve, reject };
    this.#pending.set(cookie, pending);
    const header = new Uint8Array(nbd.REQUEST_SIZE_BYTES);
    encodeRequest(new DataView(header.buffer), 0, 0, type, 0, cookie, offset, length);
    this.#socket.write(header);
    await promise;
    return pending.extents;
  }
}

function placeOf({ into, offset }: Pending, at: number, length: number): Uint8Array {
  const from = at - offset;
  if (into === null || from < 0 || from + length > into.length)
    throw new Error('data that was not asked for');
  return into.subarray(from, from + length);
}

function readExtents(view: DataView, from: number, { extents, offset }: Pending): void {
  for (let at = from; at + 8 <= view.byteLength; at += 8) {
    const length = view.getUint32(at);
    if (length === 0) throw new Error('an extent of no bytes');
    extents.push({ offset, length, status: view.getUint32(at + 4) });
  }
}
