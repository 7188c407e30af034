/** The handshake phase of a connection: feeds the state machine, looks exports up, sends its output piece by piece. */
import {
  type ExportDescription,
  type ExportRefusal,
  ServerHandshake,
  type ServerHandshakeOutcome,
} from '@blockwire/proto/nbd/server-handshake.ts';
import { UNIT_BYTES } from './buffer-pool.ts';
import { type Connection, HANDSHAKE } from './connection.ts';
import type { NodeMemory } from './node-io.ts';
import type { Receiver } from './receiver.ts';
import { type Transmitter, TX_ORDER } from './transmitter.ts';

export interface GreeterHost {
  listExports(): Iterable<string>;
  /** Notes with the connection what it may do. */
  lookUp(connection: Connection, name: string): ExportDescription | ExportRefusal;
  close(connection: Connection): void;
  /** The handshake is over and all of its output is sent. */
  handshakeDone(connection: Connection, outcome: ServerHandshakeOutcome): void;
}

export class Greeter {
  readonly #memory: NodeMemory;
  readonly #receiver: Receiver;
  readonly #transmitter: Transmitter;
  readonly #host: GreeterHost;

  constructor(parts: {
    memory: NodeMemory;
    receiver: Receiver;
    transmitter: Transmitter;
    host: GreeterHost;
  }) {
    this.#memory = parts.memory;
    this.#receiver = parts.receiver;
    this.#transmitter = parts.transmitter;
    this.#host = parts.host;
  }

  /** A new client: the server speaks first. */
  greet(connection: Connection): void {
    connection.handshake = new ServerHandshake({
      listExports: () => this.#host.listExports(),
      extendedHeaders: true,
    });
    this.advance(connection);
  }

  /** Bytes came. */
  advance(connection: Connection): void {
    const handshake = connection.handshake!;
    for (;;) {
      const { rxAt, rxHead, rxTail } = connection;
      const consumed = handshake.consume(this.#memory.bytes.subarray(rxAt + rxHead, rxAt + rxTail));
      connection.rxHead += consumed;
      const wanted = handshake.exportWanted;
      if (wanted !== null) handshake.answerExport(this.#host.lookUp(connection, wanted));
      else if (consumed === 0) break;
    }
    connection.handshakeOutput = handshake.takeOutput();
    this.pump(connection);
  }

  /** Sends the next piece of output; when all is sent, does what comes next. */
  pump(connection: Connection): void {
    if (connection.sending || connection.phase !== HANDSHAKE) return;
    const handshake = connection.handshake!;
    const output = connection.handshakeOutput;
    if (output !== null && output.length > 0) {
      const piece = output.subarray(0, UNIT_BYTES << TX_ORDER);
      connection.handshakeOutput = output.subarray(piece.length);
      this.#memory.bytes.set(piece, connection.txAt);
      this.#transmitter.sendRaw(connection, piece.length);
    } else if (handshake.state === 'closed') {
      this.#host.close(connection);
    } else if (handshake.state === 'transmission') {
      this.#host.handshakeDone(connection, handshake.outcome!);
    } else if (!connection.receiving) {
      this.#receiver.receiveMore(connection);
    }
  }
}
