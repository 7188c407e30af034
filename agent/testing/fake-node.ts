/** An NBD server that takes down what it is told, and lets in, refuses and answers as the test says. */
import assert from 'node:assert/strict';
import { createServer, type Server, type Socket } from 'node:net';
import { NBD_CMD_READ, NBD_CMD_WRITE } from '@blockwire/proto/nbd/constants.ts';
import { SIZE } from './link-bench.ts';

const REQUEST_BYTES = 28;

export interface ToldRequest {
  readonly connection: number;
  readonly type: number;
  readonly offset: number;
  readonly length: number;
}

export class FakeNode {
  /** By connection: the export name that it asked for. */
  readonly names: string[] = [];
  readonly requests: ToldRequest[] = [];
  /** Said to whoever connects, by NBD_REP_ERR_POLICY; null: they are let in. */
  refusal: string | null = null;
  /** Called for each connection before it is answered. */
  onName: (name: string) => void = () => {};
  /** Whether requests of this type are answered. */
  answers: (type: number) => boolean = () => true;
  /** The error of the answers. */
  error = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor() {
    this.#server = createServer((socket) => this.#accept(socket));
  }

  static async start(): Promise<FakeNode> {
    const node = new FakeNode();
    await new Promise<void>((resolve) => node.#server.listen(0, '127.0.0.1', resolve));
    return node;
  }

  get port(): number {
    const address = this.#server.address();
    assert.ok(typeof address === 'object' && address !== null);
    return address.port;
  }

  /** Requests of a type, in the order of their arrival. */
  told(type: number): ToldRequest[] {
    return this.requests.filter((request) => request.type === type);
  }

  /** Ends all connections by a reset, as the end of a process does. */
  reset(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  close(): void {
    this.reset();
    this.#server.close();
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.#sockets.delete(socket));
    socket.write(Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]));
    const connection = this.names.push('') - 1;
    let buffered = Buffer.alloc(0);
    let isReady = false;
    socket.on('data', (bytes: Buffer) => {
      buffered = Buffer.concat([buffered, bytes]);
      if (!isReady) {
        // Client flags, the option's header, its data: a counted name first.
        if (buffered.length < 20) return;
        const end = 20 + buffered.readUInt32BE(16);
        if (buffered.length < end) return;
        const name = buffered.toString('utf8', 24, 24 + buffered.readUInt32BE(20));
        buffered = buffered.subarray(end);
        this.names[connection] = name;
        this.onName(name);
        isReady = this.#answerName(socket);
        if (!isReady) return;
      }
      buffered = this.#answerRequests(socket, connection, buffered);
    });
  }

  #answerName(socket: Socket): boolean {
    const reply = (type: number, data: Buffer): Buffer => {
      const header = Buffer.alloc(20);
      header.writeBigUInt64BE(0x0003_e889_0455_65a9n);
      header.writeUInt32BE(7, 8);
      header.writeUInt32BE(type, 12);
      header.writeUInt32BE(data.length, 16);
      return Buffer.concat([header, data]);
    };
    if (this.refusal !== null) {
      socket.end(reply(0x8000_0002, Buffer.from(`${this.refusal}: not now`)));
      return false;
    }
    const info = Buffer.alloc(12);
    info.writeBigUInt64BE(BigInt(SIZE), 2);
    info.writeUInt16BE(0b1101, 10); // HAS_FLAGS, SEND_FLUSH, SEND_FUA
    socket.write(Buffer.concat([reply(3, info), reply(1, Buffer.alloc(0))]));
    return true;
  }

  #answerRequests(socket: Socket, connection: number, bytes: Buffer<ArrayBuffer>): Buffer<ArrayBuffer> {
    let rest = bytes;
    while (rest.length >= REQUEST_BYTES) {
      const type = rest.readUInt16BE(6);
      const length = rest.readUInt32BE(24);
      const end = REQUEST_BYTES + (type === NBD_CMD_WRITE ? length : 0);
      if (rest.length < end) break;
      this.requests.push({ connection, type, offset: Number(rest.readBigUInt64BE(16)), length });
      if (this.answers(type)) {
        const reply = Buffer.alloc(16 + (type === NBD_CMD_READ && this.error === 0 ? length : 0));
        reply.writeUInt32BE(0x6744_6698);
        reply.writeUInt32BE(this.error, 4);
        rest.copy(reply, 8, 8, 16);
        socket.write(reply);
      }
      rest = rest.subarray(end);
    }
    return rest;
  }
}
