/** The state of one client connection. What moves it: receiver.ts (requests), transmitter.ts (replies), server.ts. */
import { REPLY_SIMPLE, type ReplyMode } from '@blockwire/proto/nbd/reply.ts';
import type { ServerHandshake } from '@blockwire/proto/nbd/server-handshake.ts';
import type { Session } from '../replication/session.ts';
import type { StatusContext } from './block-status.ts';
import { NO_BLOCK } from './buffer-pool.ts';
import type { CopySteps } from './engine.ts';
import { NO_SLOT, SlotQueue } from './slots.ts';
import type { Volume } from './volume.ts';

/**
 *   HANDSHAKE ──▶ ENTERING ──▶ TRANSMISSION ──▶ DRAINING (NBD_CMD_DISC: answer what is open) ──▶ CLOSING ──▶ freed
 *       └─────────────┴─────────────┴── hang-up, broken frame, cut ─────────────────────────────▶
 * ENTERING waits for the end of others, with its requests still in the socket.
 * CLOSING waits until no kernel operation names this connection's memory.
 */
export const HANDSHAKE = 0;
export const TRANSMISSION = 1;
export const DRAINING = 2;
export const CLOSING = 3;
export const ENTERING = 4;
/** No socket: a copy from another replica (copier.ts). */
export const LOCAL = 5;

/** Who is behind a connection without a socket. */
export interface LocalClient {
  /** Requests of the connection are finished, or there is memory again. */
  serve(connection: Connection): void;
  /** Of its copies; null: it has none. */
  readonly steps: CopySteps | null;
}

export class Connection {
  readonly index: number;
  readonly fd: number;
  /** Monotonic milliseconds, as of the last tick. */
  readonly acceptedMs: number;
  phase = HANDSHAKE;

  /** Null once the transmission phase began. */
  handshake: ServerHandshake | null = null;
  /** Handshake bytes that did not fit the transmit block yet. */
  handshakeOutput: Uint8Array | null = null;

  /** The export that was looked up last, and what the client may do with it. */
  exportId: string | null = null;
  session: Session | null = null;
  volume: Volume | null = null;
  readOnly = true;
  /** Null: a socket's. */
  local: LocalClient | null = null;
  replyMode: ReplyMode = REPLY_SIMPLE;
  /** The metadata contexts that were selected. */
  contexts: readonly StatusContext[] = [];

  // Receiving: [rxHead, rxTail) of the block at rxAt is not parsed yet.
  rxAt = NO_BLOCK;
  rxOrder = 0;
  rxSizeBytes = 0;
  rxHead = 0;
  rxTail = 0;
  /** The most that the next receive takes: little while large writes come, so that payload goes where it belongs. */
  rxLimitBytes = 0;
  receiving = false;
  /** The write whose payload is being received straight into its block, and the bytes expected. */
  payloadSlot = NO_SLOT;
  payloadBytes = 0;
  payloadStartedMs = 0;
  /** Payload of a refused request that is still to come. */
  drainBytes = 0;
  /** A write of several parts that is being received: its slot, and where its next part begins. */
  bulkSlot = NO_SLOT;
  bulkOffset = 0;
  bulkRemaining = 0;
  /** In the queue of those that wait for slots or memory. */
  waitingForMemory = false;

  // Transmitting: one send in flight at most; what completes meanwhile gathers in `done`.
  txAt = NO_BLOCK;
  sending = false;
  sendStartedMs = 0;
  sendBytes = 0;
  readonly done = new SlotQueue();
  readonly sent = new SlotQueue();
  /** A read too long for one block: it has the connection for itself, block after block (transmitter.ts). */
  serialSlot = NO_SLOT;
  serialStarted = false;
  serialHeaderSent = false;
  serialReady = false;

  /** Slots that belong to this connection, and the bytes of their blocks. */
  inFlight = 0;
  bufferBytes = 0;
  /** In the list of connections to be served at the end of the batch. */
  dirty = false;

  constructor(index: number, fd: number, acceptedMs: number) {
    this.index = index;
    this.fd = fd;
    this.acceptedMs = acceptedMs;
  }

  /** Whether the kernel may still touch memory of this connection's own blocks. */
  get busy(): boolean {
    return this.receiving || this.payloadSlot !== NO_SLOT || this.sending;
  }
}
