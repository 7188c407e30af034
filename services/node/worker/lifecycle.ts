/**
 * A connection's life: accepted, or adopted from another worker; handshake; transmission; closing; gone.
 *
 *   accept ─▶ HANDSHAKE ──▶ ENTERING ──▶ TRANSMISSION ──▶ CLOSING ──▶ released, once nothing in the kernel names its memory
 *                 │             ▲ earlier attempts of its link end (sessions.ts)
 *                 └─ hand over ─┴─ adopt   (the volume is another worker's)
 */
import type {
  ExportDescription,
  ExportRefusal,
  ServerHandshakeOutcome,
} from '@blockwire/proto/nbd/server-handshake.ts';
import type { ExportRecord, FromWorker, Handover, WorkerSettings } from '../data/messages.ts';
import { Stat } from '../data/stats.ts';
import { statusContexts } from './block-status.ts';
import { CLOSING, type Connection, ENTERING, HANDSHAKE, TRANSMISSION } from './connection.ts';
import type { ConnectionTable } from './connection-table.ts';
import type { Engine } from './engine.ts';
import { Greeter, type GreeterHost } from './greeter.ts';
import type { NodeIo } from './node-io.ts';
import type { Receiver } from './receiver.ts';
import type { RequestMemory } from './request-memory.ts';
import { Sessions, type SessionsHost } from './sessions.ts';
import { NO_SLOT, type Slots } from './slots.ts';
import type { Transmitter } from './transmitter.ts';
import type { Volume } from './volume.ts';
import type { VolumeTable } from './volume-table.ts';

const HANDSHAKE_MS_MAX = 30_000;
/**
 * With others waiting for memory, a client that takes no replies, or does not send the rest of a payload, for this long
 * loses its connection.
 */
const STALL_MS_MAX = 10_000;

export interface LifecycleHost {
  /** A connection is gone. */
  connectionGone(connection: Connection): void;
}

export interface LifecycleParts {
  readonly settings: WorkerSettings;
  readonly io: NodeIo;
  readonly post: (message: FromWorker) => void;
  readonly stats: Float64Array;
  readonly slots: Slots;
  readonly memory: RequestMemory;
  readonly connections: ConnectionTable;
  readonly volumes: VolumeTable;
  readonly exports: ReadonlyMap<string, ExportRecord>;
  readonly engine: Engine;
  readonly receiver: Receiver;
  readonly transmitter: Transmitter;
  readonly host: LifecycleHost;
  readonly nowSeconds: () => number;
}

export class Lifecycle implements GreeterHost, SessionsHost {
  readonly sessions: Sessions;
  /** Nobody is let in any more. */
  stopping = false;
  readonly #parts: LifecycleParts;
  readonly #connections: ConnectionTable;
  readonly #greeter: Greeter;
  #nowMs = 0;
  #accepting = false;
  #failureReported = false;

  constructor(parts: LifecycleParts) {
    const { io, receiver, transmitter } = parts;
    this.#parts = parts;
    this.#connections = parts.connections;
    const { exports, volumes, nowSeconds } = parts;
    this.sessions = new Sessions({ exports, volumes, nowSeconds, host: this });
    this.#greeter = new Greeter({ memory: io.memory, receiver, transmitter, host: this });
  }

  /** Accepts the next connection, if there is room for one. */
  accept(): void {
    if (this.#accepting || this.stopping || this.#connections.isFull) return;
    this.#accepting = true;
    this.#parts.io.accept(this.#parts.settings.listenFd);
  }

  accepted(result: number): void {
    this.#accepting = false;
    // After an error (no descriptors left) the next tick tries again.
    if (result < 0) return;
    if (this.stopping) {
      this.#parts.io.close(result);
      return;
    }
    this.#count(Stat.connectionsAccepted);
    const connection = this.#admit(result);
    if (connection !== null) this.#greeter.greet(connection);
    this.accept();
  }

  /** A connection that another worker hands over. */
  adopt(handover: Handover): void {
    const { io, volumes } = this.#parts;
    const volume = volumes.get(handover.volumeId);
    if (volume === undefined || this.stopping) {
      io.close(handover.fd);
      return;
    }
    const connection = this.#admit(handover.fd);
    if (connection === null) return;
    connection.exportId = volume.id;
    connection.session = handover.session;
    connection.replyMode = handover.replyMode;
    connection.contexts = handover.contexts;
    io.memory.bytes.set(handover.leftover, connection.rxAt);
    connection.rxTail = handover.leftover.length;
    this.#enter(connection, volume);
  }

  listExports(): Iterable<string> {
    return this.sessions.listed();
  }

  lookUp(connection: Connection, name: string): ExportDescription | ExportRefusal {
    return this.sessions.lookUp(connection, name);
  }

  /** Bytes came, or the end of the stream. */
  received(connection: Connection, result: number): void {
    connection.receiving = false;
    if (result > 0) connection.rxTail += result;
    this.#connections.touch(connection);
    if (connection.phase === CLOSING) return;
    if (result > 0) {
      if (connection.phase === HANDSHAKE) this.#greeter.advance(connection);
    } else if (result < 0) {
      this.fail(connection, 'the connection broke');
    } else if (connection.rxTail > connection.rxHead || connection.drainBytes > 0) {
      this.fail(connection, 'the client hung up in the middle of a request');
    } else {
      this.close(connection);
    }
  }

  /** Goes on with a handshake. */
  pump(connection: Connection): void {
    this.#greeter.pump(connection);
  }

  /** The transmission phase begins, here or at the worker that owns the volume. */
  handshakeDone(connection: Connection, outcome: ServerHandshakeOutcome): void {
    const record = this.#parts.exports.get(outcome.exportName);
    if (record === undefined) {
      this.close(connection);
      return;
    }
    connection.handshake = null;
    connection.replyMode = outcome.replyMode;
    connection.contexts = statusContexts(outcome.metaContexts);
    const volume = this.#parts.volumes.get(record.id);
    if (volume === undefined) this.#handOver(connection, record);
    else this.#enter(connection, volume);
  }

  /** Deadlines. */
  onTick(nowMs: number, othersWait: boolean): void {
    this.#nowMs = nowMs;
    this.#failureReported = false;
    this.accept();
    // By index: an iterator allocates for each of a thousand connections.
    for (let index = 0; index < this.#connections.end; index++) {
      const connection = this.#connections.find(index);
      if (connection !== null) this.#checkDeadlines(connection, othersWait);
    }
  }

  /** Ends a connection that broke the protocol or broke off. */
  fail(connection: Connection, reason: string): void {
    if (connection.phase === CLOSING) return;
    this.#count(Stat.connectionsFailed);
    // At most one report a tick: a hostile client must not fill the log.
    if (!this.#failureReported) {
      this.#failureReported = true;
      this.#parts.post({ type: 'connectionFailed', reason });
    }
    this.close(connection);
  }

  /** Begins the end: nothing more is parsed or sent, what is on the disk runs to its end. */
  close(connection: Connection): void {
    if (connection.phase === CLOSING) return;
    const { io, engine, receiver, slots, memory } = this.#parts;
    connection.phase = CLOSING;
    io.shutdown(connection.fd);
    engine.dropWaiting(connection);
    receiver.abandon(connection);
    for (;;) {
      const slot = connection.done.shift(slots);
      if (slot === NO_SLOT) break;
      memory.give(slot, connection);
    }
    this.#connections.touch(connection);
  }

  /** Closes the connections that `which` picks, and returns those that are not gone yet. */
  closeAll(which: (connection: Connection) => boolean): Set<Connection> {
    const closed = new Set<Connection>();
    for (let index = 0; index < this.#connections.end; index++) {
      const connection = this.#connections.find(index);
      if (connection === null || !which(connection)) continue;
      closed.add(connection);
      this.close(connection);
    }
    return closed;
  }

  /** Releases a closing connection once nothing of it is at work. */
  releaseIfIdle(connection: Connection): void {
    if (connection.busy) return;
    const serial = connection.serialSlot;
    if (serial !== NO_SLOT && (connection.serialReady || !connection.serialStarted)) {
      connection.serialSlot = NO_SLOT;
      this.#parts.memory.give(serial, connection);
    }
    if (connection.inFlight > 0) return;
    this.#parts.io.close(connection.fd);
    this.#release(connection);
  }

  #checkDeadlines(connection: Connection, othersWait: boolean): void {
    if (connection.phase === CLOSING) return;
    const nowMs = this.#nowMs;
    if (connection.phase === HANDSHAKE && nowMs - connection.acceptedMs > HANDSHAKE_MS_MAX) {
      this.fail(connection, 'the handshake took too long');
    } else if (othersWait && connection.sending && nowMs - connection.sendStartedMs > STALL_MS_MAX) {
      this.fail(connection, 'the client does not take its replies while others wait for memory');
    } else if (
      othersWait &&
      connection.payloadSlot !== NO_SLOT &&
      nowMs - connection.payloadStartedMs > STALL_MS_MAX
    ) {
      this.fail(connection, 'the client does not send its payload while others wait for memory');
    }
  }

  /** Null: there was no room, and the descriptor is closed. */
  #admit(fd: number): Connection | null {
    const connection = this.#connections.admit(fd, this.#nowMs);
    if (connection === null) {
      this.#count(Stat.connectionsRefused);
      this.#parts.io.close(fd);
    }
    this.#parts.stats[Stat.connections] = this.#connections.count;
    return connection;
  }

  #enter(connection: Connection, volume: Volume): void {
    connection.volume = volume;
    connection.phase = ENTERING;
    this.sessions.enter(connection, volume);
  }

  begin(connection: Connection): void {
    connection.readOnly = !connection.session!.mayWrite;
    connection.phase = TRANSMISSION;
    this.#parts.receiver.prepare(connection);
    this.#parts.transmitter.prepare(connection);
    this.#connections.enlarge(connection);
    this.#connections.touch(connection);
  }

  #handOver(connection: Connection, record: ExportRecord): void {
    const { rxAt, rxHead, rxTail } = connection;
    const handover: Handover = {
      fd: connection.fd,
      volumeId: record.id,
      session: connection.session!,
      replyMode: connection.replyMode,
      contexts: connection.contexts,
      leftover: this.#parts.io.memory.bytes.slice(rxAt + rxHead, rxAt + rxTail),
    };
    this.#count(Stat.handovers);
    connection.phase = CLOSING;
    this.#release(connection);
    this.#parts.post({ type: 'handover', to: record.owner, handover });
  }

  /** Gives blocks and index back. */
  #release(connection: Connection): void {
    this.#connections.release(connection);
    this.#parts.stats[Stat.connections] = this.#connections.count;
    this.#parts.host.connectionGone(connection);
    this.sessions.connectionGone(connection);
    this.accept();
  }

  #count(stat: number): void {
    const { stats } = this.#parts;
    stats[stat] = stats[stat]! + 1;
  }
}
