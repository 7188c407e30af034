/**
 * A data worker: its connections, its volumes, and what happens at each completion. Everything here runs on one thread
 * and one ring.
 *
 *   accept ─▶ handshake ─▶ receiver ─▶ engine ─▶ transmitter ─▶ socket
 *                │            ▲ at the end of each batch, for every connection that something happened to
 *                └─▶ another worker, when it owns the volume
 */
import type { ServerHandshakeOutcome } from '@blockwire/proto/nbd/server-handshake.ts';
import type { ExportRecord, FromWorker, Handover, ToWorker, WorkerSettings } from '../data/messages.ts';
import { Stat } from '../data/stats.ts';
import { REGION_SIZE_BYTES, REGIONS_PER_PAGE } from '../store/region-table.ts';
import { statusContexts } from './block-status.ts';
import { BLOCK_BYTES_MAX, BufferPool, NO_BLOCK, UNIT_BYTES } from './buffer-pool.ts';
import { CLEAN_BASE, Cleaner } from './cleaner.ts';
import { CLOSING, Connection, DRAINING, HANDSHAKE, TRANSMISSION } from './connection.ts';
import { Engine } from './engine.ts';
import { Greeter } from './greeter.ts';
import { PAGE_IDLE } from './integrity.ts';
import { type NodeIo, OP_ACCEPT, OP_DISK, OP_RECEIVE, OP_RECEIVE_PAYLOAD, OP_SEND } from './node-io.ts';
import { Receiver } from './receiver.ts';
import { COMMIT_BASE, RegionCommitter } from './region-commit.ts';
import { NO_SLOT, Slots } from './slots.ts';
import { Transmitter, TX_ORDER } from './transmitter.ts';
import type { Volume } from './volume.ts';
import { PROBE_BASE, VolumeTable } from './volume-table.ts';

/** Receive blocks: one that holds the longest option, one for requests. */
const RX_ORDER_HANDSHAKE = 2;
const RX_ORDER = 5;
const ENOENT = 2;
const EIO = 5;
const HANDSHAKE_MS_MAX = 30_000;
/**
 * With others waiting for memory, a client that takes no replies, or does not send the rest of a payload, for this long
 * loses its connection.
 */
const STALL_MS_MAX = 10_000;
/** Connections that may have a large receive block; the others do with the one of their handshake. */
const LARGE_RX_COUNT = 64;

/** Connections on their way out that someone waits for. */
interface Cut {
  readonly request: number;
  readonly id: string;
  readonly connections: Set<Connection>;
  readonly retire: boolean;
}

/** An epoch that is being installed: the pages of the region map that must become durable first. */
interface Tagging {
  readonly request: number;
  readonly volume: Volume;
  readonly pages: Set<number>;
}

/** What a connection needs from its first byte on. */
const CONNECTION_BYTES_MIN = (UNIT_BYTES << RX_ORDER_HANDSHAKE) + (UNIT_BYTES << TX_ORDER);

/** Memory for the connections' own blocks, so many that each of `connectionsMax` can be let in at any time. */
export function connectionPoolBytes(connectionsMax: number): number {
  const bytes = connectionsMax * CONNECTION_BYTES_MIN + LARGE_RX_COUNT * (UNIT_BYTES << RX_ORDER);
  return Math.ceil(bytes / BLOCK_BYTES_MAX) * BLOCK_BYTES_MAX;
}

export class NodeServer {
  /** Monotonic milliseconds, as of the last tick. */
  nowMs = 0;
  readonly #settings: WorkerSettings;
  readonly #io: NodeIo;
  readonly #post: (message: FromWorker) => void;
  readonly #onStopped: () => void;
  readonly #slots: Slots;
  /** For requests, and for the connections' own blocks: neither can starve the other. */
  readonly #pool: BufferPool;
  readonly #connectionPool: BufferPool;
  readonly #stats: Float64Array;
  readonly #engine: Engine;
  readonly #receiver: Receiver;
  readonly #transmitter: Transmitter;
  readonly #greeter: Greeter;
  readonly #connections: (Connection | null)[];
  readonly #freeIndexes: number[] = [];
  #connectionCount = 0;
  readonly #dirty: Int32Array;
  #dirtyCount = 0;
  readonly #waitingSmall: Connection[] = [];
  readonly #waitingLarge: Connection[] = [];
  readonly #exports = new Map<string, ExportRecord>();
  readonly #volumes: VolumeTable;
  readonly #committer: RegionCommitter;
  readonly #cleaner: Cleaner;
  #cuts: Cut[] = [];
  /** Cut, but not forgotten before the last of their own operations is over. */
  #retiring: Cut[] = [];
  #taggings: Tagging[] = [];
  #holds: { readonly request: number; readonly volume: Volume }[] = [];
  #stopped = false;
  #checksumReported = false;
  #turn: Connection | null = null;
  #reported = false;
  #accepting = false;
  #stopping = false;

  constructor(parts: {
    settings: WorkerSettings;
    io: NodeIo;
    post: (message: FromWorker) => void;
    onStopped: () => void;
  }) {
    const { settings, io } = parts;
    this.#settings = settings;
    this.#io = io;
    this.#post = parts.post;
    this.#onStopped = parts.onStopped;
    this.#slots = new Slots(settings.slotCount);
    this.#pool = new BufferPool(settings.poolBytes);
    this.#connectionPool = new BufferPool(connectionPoolBytes(settings.connectionsMax), settings.poolBytes);
    const stats = new Float64Array(settings.stats);
    this.#stats = stats;
    const slots = this.#slots;
    this.#engine = new Engine({ slots, pool: this.#pool, io, host: this, stats });
    const engine = this.#engine;
    this.#receiver = new Receiver({ slots, engine, io, host: this, stats });
    this.#transmitter = new Transmitter({ slots, engine, io, host: this, stats });
    const { memory } = io;
    const receiver = this.#receiver;
    this.#greeter = new Greeter({ memory, receiver, transmitter: this.#transmitter, host: this });
    this.#volumes = new VolumeTable(io, slots);
    this.#committer = new RegionCommitter(io, this.#pool, this);
    this.#cleaner = new Cleaner(io, this.#committer, this);
    this.#connections = new Array<Connection | null>(settings.connectionsMax).fill(null);
    for (let i = settings.connectionsMax - 1; i >= 0; i--) this.#freeIndexes.push(i);
    this.#dirty = new Int32Array(settings.connectionsMax);
    io.sink = this;
  }

  get exports(): ReadonlyMap<string, ExportRecord> {
    return this.#exports;
  }

  get stopping(): boolean {
    return this.#stopping;
  }

  get connectionCount(): number {
    return this.#connectionCount;
  }

  /** Begins to accept. */
  start(): void {
    this.#accept();
  }

  // Completions

  complete(operation: number, data: number, result: number): void {
    switch (operation) {
      case OP_DISK:
        if (data < COMMIT_BASE) this.#engine.complete(data, result);
        else if (data < CLEAN_BASE) this.#committer.complete(data, result);
        else if (data < PROBE_BASE) this.#cleaner.complete(data, result);
        else this.#volumes.probed(data, result);
        break;
      case OP_RECEIVE:
        this.#received(this.#connections[data]!, result);
        break;
      case OP_RECEIVE_PAYLOAD: {
        const connection = this.#connections[data]!;
        this.#receiver.payloadReceived(connection, result);
        this.#touch(connection);
        break;
      }
      case OP_SEND: {
        const connection = this.#connections[data]!;
        this.#transmitter.sent(connection, result);
        this.#touch(connection);
        break;
      }
      case OP_ACCEPT:
        this.#accepted(result);
        break;
      default:
    }
  }

  /** After each batch of completions: parses, sends, closes. */
  onBatchEnd(): void {
    this.#engine.settleBatch();
    this.#serveDirty();
    this.#serveWaiting(this.#waitingSmall);
    this.#serveWaiting(this.#waitingLarge);
    this.#serveDirty();
    this.#committer.flush();
    this.#stats[Stat.poolFreeBytes] = this.#pool.freeBytes;
    if (this.#holds.length > 0) this.#answerHolds();
    if (this.#retiring.length > 0) this.#finishRetiring();
    if (this.#stopping) this.#stopIfDone();
  }

  /** Serves those that wait for memory, first come first; stops at the first for whom there is still not enough. */
  #serveWaiting(queue: Connection[]): void {
    for (;;) {
      const connection = queue.shift();
      if (connection === undefined) return;
      connection.waitingForMemory = false;
      if (connection.phase === CLOSING) continue;
      this.#turn = connection;
      this.#receiver.serve(connection);
      this.#turn = null;
      if (connection.waitingForMemory && queue.at(-1) === connection) {
        // Still not enough: it stays the first.
        queue.pop();
        queue.unshift(connection);
        return;
      }
      this.#touch(connection);
    }
  }

  onTick(nowMs: number): void {
    this.nowMs = nowMs;
    this.#reported = false;
    this.#checksumReported = false;
    this.#stats[Stat.regionPageWrites] = this.#committer.writtenCount;
    for (const volume of this.#stopping ? [] : this.#volumes.values()) {
      this.#cleaner.tick(volume);
      if (volume.integrity.lostChecksums) this.volumeFailed(volume, EIO);
    }
    this.#accept();
    const othersWait = this.#waitingSmall.length + this.#waitingLarge.length > 0;
    for (const connection of this.#connections) {
      if (connection === null || connection.phase === CLOSING) continue;
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
  }

  // What engine, receiver and transmitter need of each other

  connectionOf(slot: number): Connection {
    return this.#connections[this.#slots.connection[slot]!]!;
  }

  finished(slot: number): void {
    const connection = this.connectionOf(slot);
    if (slot === connection.serialSlot) connection.serialReady = true;
    else if (connection.phase === CLOSING) this.#engine.give(slot);
    else connection.done.push(this.#slots, slot);
    this.#touch(connection);
  }

  roomFreed(connection: Connection): void {
    this.#touch(connection);
  }

  volumeFailed(volume: Volume, errno: number): void {
    if (volume.failure === errno) return;
    volume.failure = errno;
    this.#post({ type: 'volumeFailed', id: volume.id, errno });
  }

  checksumFailed(volume: Volume, block: number): void {
    // At most one report a tick: a bad disk must not fill the log.
    if (this.#checksumReported) return;
    this.#checksumReported = true;
    this.#post({ type: 'checksumFailed', id: volume.id, offset: block * UNIT_BYTES });
  }

  regionsChanged(volume: Volume, page: number): void {
    this.#committer.request(volume, page);
  }

  pageCommitted(volume: Volume, page: number, errno: number): void {
    if (errno !== 0) this.volumeFailed(volume, errno);
    const pageBytes = REGIONS_PER_PAGE * REGION_SIZE_BYTES;
    this.#engine.regionsCommitted(volume, page * pageBytes, (page + 1) * pageBytes, errno);
    if (this.#taggings.length === 0) return;
    const isCurrent = volume.integrity.pageState[page] === PAGE_IDLE;
    for (const tagging of this.#taggings) {
      if (tagging.volume !== volume || !tagging.pages.has(page)) continue;
      if (errno === 0 && !isCurrent) continue;
      if (errno === 0) tagging.pages.delete(page);
      else tagging.pages.clear();
      if (tagging.pages.size === 0) this.#post({ type: 'done', request: tagging.request, errno });
    }
    this.#taggings = this.#taggings.filter(({ pages }) => pages.size > 0);
  }

  waitForMemory(connection: Connection, small: boolean): void {
    if (connection.waitingForMemory) return;
    connection.waitingForMemory = true;
    (small ? this.#waitingSmall : this.#waitingLarge).push(connection);
    this.#count(Stat.memoryWaits);
  }

  mustQueue(connection: Connection, small: boolean): boolean {
    return (small ? this.#waitingSmall : this.#waitingLarge).length > 0 && this.#turn !== connection;
  }

  /** Ends a connection that broke the protocol or broke off. */
  fail(connection: Connection, reason: string): void {
    if (connection.phase === CLOSING) return;
    this.#count(Stat.connectionsFailed);
    // At most one report a tick: a hostile client must not fill the log.
    if (!this.#reported) {
      this.#reported = true;
      this.#post({ type: 'connectionFailed', reason });
    }
    this.close(connection);
  }

  // Messages of the main thread

  onMessage(message: ToWorker): void {
    switch (message.type) {
      case 'open':
        this.#open(message);
        break;
      case 'publish':
        this.#exports.set(message.record.id, message.record);
        this.#done(message.request);
        break;
      case 'retire':
        this.#exports.delete(message.id);
        this.#cut(message.request, message.id, Number.POSITIVE_INFINITY, true);
        break;
      case 'fence': {
        const record = this.#exports.get(message.id);
        const { generation } = message;
        if (record !== undefined) this.#exports.set(message.id, { ...record, generation });
        const volume = this.#volumes.get(message.id);
        if (volume !== undefined) volume.generation = generation;
        this.#cut(message.request, message.id, generation, false);
        break;
      }
      case 'tag':
      case 'hold':
      case 'unhold':
      case 'resize':
      case 'checkpoint':
        this.#command(message);
        break;
      case 'adopt':
        this.#adopt(message.handover);
        break;
      case 'stop':
        this.#stopping = true;
        for (const connection of this.#connections) if (connection !== null) this.close(connection);
        this.#stopIfDone();
        break;
      default:
    }
  }

  #open(message: Extract<ToWorker, { type: 'open' }>): void {
    const { request } = message;
    this.#volumes.open(message, ({ canPunchHole, canZeroRange }) => {
      this.#post({ type: 'opened', request, canPunchHole, canZeroRange });
    });
  }

  /** Cuts the connections of an export below a generation; answers when nothing of theirs is at work any more. */
  #cut(request: number, id: string, generation: number, retire: boolean): void {
    const connections = new Set<Connection>();
    for (const connection of this.#connections) {
      if (connection === null || connection.exportId !== id || connection.generation >= generation) continue;
      connections.add(connection);
      this.close(connection);
    }
    const cut: Cut = { request, id, connections, retire };
    if (connections.size > 0) this.#cuts.push(cut);
    else this.#finishCut(cut);
  }

  #finishCut(cut: Cut): void {
    if (cut.retire && this.#volumes.get(cut.id)?.busy === true) {
      this.#retiring.push(cut);
      return;
    }
    if (cut.retire) this.#volumes.delete(cut.id);
    this.#done(cut.request);
  }

  #finishRetiring(): void {
    const cuts = this.#retiring;
    this.#retiring = [];
    for (const cut of cuts) this.#finishCut(cut);
  }

  #answerHolds(): void {
    this.#holds = this.#holds.filter(({ request, volume }) => {
      if (volume.order.activeCount > 0) return true;
      this.#done(request);
      return false;
    });
  }

  #command(message: Extract<ToWorker, { type: 'tag' | 'hold' | 'unhold' | 'resize' | 'checkpoint' }>): void {
    const { request } = message;
    const volume = this.#volumes.get(message.id);
    if (volume === undefined) {
      this.#post({ type: 'done', request, errno: ENOENT });
      return;
    }
    switch (message.type) {
      case 'tag':
        this.#tag(request, volume, message.epoch);
        break;
      case 'hold':
        volume.order.hold();
        this.#holds.push({ request, volume });
        break;
      case 'unhold':
        this.#engine.unhold(volume);
        this.#done(request);
        break;
      case 'resize':
        volume.integrity.grow(message.sizeBytes);
        volume.sizeBytes = message.sizeBytes;
        this.#done(request);
        break;
      default:
        this.#cleaner.checkpoint(volume, (errno) => this.#post({ type: 'done', request, errno }));
    }
  }

  #tag(request: number, volume: Volume, epoch: number): void {
    const pages = volume.integrity.installEpoch(epoch);
    if (pages.length === 0) {
      this.#done(request);
      return;
    }
    for (const page of pages) this.#committer.request(volume, page);
    this.#taggings.push({ request, volume, pages: new Set(pages) });
  }

  #done(request: number): void {
    this.#post({ type: 'done', request, errno: 0 });
  }

  #adopt(handover: Handover): void {
    const volume = this.#volumes.get(handover.volumeId);
    if (volume === undefined || handover.generation < volume.generation || this.#stopping) {
      this.#io.close(handover.fd);
      return;
    }
    const connection = this.#admit(handover.fd);
    if (connection === null) return;
    connection.handshake = null;
    connection.exportId = volume.id;
    connection.generation = handover.generation;
    connection.replyMode = handover.replyMode;
    connection.contexts = handover.contexts;
    this.#io.memory.bytes.set(handover.leftover, connection.rxAt);
    connection.rxTail = handover.leftover.length;
    this.#beginTransmission(connection, volume);
  }

  // Connections

  #accept(): void {
    if (this.#accepting || this.#stopping || this.#freeIndexes.length === 0) return;
    this.#accepting = true;
    this.#io.accept(this.#settings.listenFd);
  }

  #accepted(result: number): void {
    this.#accepting = false;
    // After an error (no descriptors left) the next tick tries again.
    if (result < 0) return;
    if (this.#stopping) {
      this.#io.close(result);
      return;
    }
    this.#count(Stat.connectionsAccepted);
    const connection = this.#admit(result);
    if (connection !== null) {
      this.#greeter.greet(connection);
    }
    this.#accept();
  }

  /** A connection with its blocks, or null: then the descriptor is closed. */
  #admit(fd: number): Connection | null {
    const tx = this.#connectionPool.allocate(TX_ORDER);
    const rx = tx === NO_BLOCK ? NO_BLOCK : this.#connectionPool.allocate(RX_ORDER_HANDSHAKE);
    const index = rx === NO_BLOCK ? undefined : this.#freeIndexes.pop();
    if (index === undefined) {
      if (rx !== NO_BLOCK) this.#connectionPool.free(rx, RX_ORDER_HANDSHAKE);
      if (tx !== NO_BLOCK) this.#connectionPool.free(tx, TX_ORDER);
      this.#count(Stat.connectionsRefused);
      this.#io.close(fd);
      return null;
    }
    const connection = new Connection(index, fd, this.nowMs);
    connection.txAt = tx;
    setReceiveBlock(connection, rx, RX_ORDER_HANDSHAKE);
    this.#connections[index] = connection;
    this.#stats[Stat.connections] = ++this.#connectionCount;
    return connection;
  }

  #received(connection: Connection, result: number): void {
    connection.receiving = false;
    if (result > 0) connection.rxTail += result;
    this.#touch(connection);
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

  /** The transmission phase begins, here or at the worker that owns the volume. */
  handshakeDone(connection: Connection, outcome: ServerHandshakeOutcome): void {
    const record = this.#exports.get(outcome.exportName);
    if (record === undefined || record.generation > connection.generation) {
      this.close(connection);
      return;
    }
    connection.handshake = null;
    connection.replyMode = outcome.replyMode;
    connection.contexts = statusContexts(outcome.metaContexts);
    const volume = this.#volumes.get(record.id);
    if (volume !== undefined) {
      this.#beginTransmission(connection, volume);
      return;
    }
    const { rxAt, rxHead, rxTail } = connection;
    const handover: Handover = {
      fd: connection.fd,
      volumeId: record.id,
      generation: connection.generation,
      replyMode: connection.replyMode,
      contexts: connection.contexts,
      leftover: this.#io.memory.bytes.slice(rxAt + rxHead, rxAt + rxTail),
    };
    this.#count(Stat.handovers);
    connection.phase = CLOSING;
    this.#release(connection);
    this.#post({ type: 'handover', to: record.owner, handover });
  }

  #beginTransmission(connection: Connection, volume: Volume): void {
    connection.volume = volume;
    connection.phase = TRANSMISSION;
    this.#transmitter.prepare(connection);
    // A small receive block serves too, only in smaller batches; those still to be let in come first.
    const owed = (this.#settings.connectionsMax - this.#connectionCount) * CONNECTION_BYTES_MIN;
    const spare = this.#connectionPool.freeBytes - owed;
    const block = spare >= UNIT_BYTES << RX_ORDER ? this.#connectionPool.allocate(RX_ORDER) : NO_BLOCK;
    if (block !== NO_BLOCK) {
      const { rxAt, rxOrder, rxHead, rxTail } = connection;
      this.#io.memory.bytes.copyWithin(block, rxAt + rxHead, rxAt + rxTail);
      this.#connectionPool.free(rxAt, rxOrder);
      setReceiveBlock(connection, block, RX_ORDER);
      connection.rxTail = rxTail - rxHead;
      connection.rxHead = 0;
    }
    this.#touch(connection);
  }

  #touch(connection: Connection): void {
    if (connection.dirty) return;
    connection.dirty = true;
    this.#dirty[this.#dirtyCount++] = connection.index;
  }

  #serveDirty(): void {
    while (this.#dirtyCount > 0) {
      const connection = this.#connections[this.#dirty[--this.#dirtyCount]!]!;
      connection.dirty = false;
      switch (connection.phase) {
        case HANDSHAKE:
          this.#greeter.pump(connection);
          break;
        case TRANSMISSION:
        case DRAINING:
          this.#receiver.serve(connection);
          this.#transmitter.flush(connection);
          // Asked to disconnect, and everything before that is answered.
          if (connection.phase === DRAINING && connection.inFlight === 0) this.close(connection);
          break;
        default:
          this.#freeIfIdle(connection);
      }
    }
  }

  /** Begins the end: nothing more is parsed or sent, what is on the disk runs to its end. */
  close(connection: Connection): void {
    if (connection.phase === CLOSING) return;
    connection.phase = CLOSING;
    this.#io.shutdown(connection.fd);
    this.#engine.dropWaiting(connection);
    this.#receiver.abandon(connection);
    for (;;) {
      const slot = connection.done.shift(this.#slots);
      if (slot === NO_SLOT) break;
      this.#engine.give(slot);
    }
    this.#touch(connection);
  }

  #freeIfIdle(connection: Connection): void {
    if (connection.busy) return;
    const serial = connection.serialSlot;
    if (serial !== NO_SLOT && (connection.serialReady || !connection.serialStarted)) {
      connection.serialSlot = NO_SLOT;
      this.#engine.give(serial);
    }
    if (connection.inFlight > 0) return;
    this.#io.close(connection.fd);
    this.#release(connection);
  }

  /** Gives blocks and index back, and tells whoever waited for this connection's end. */
  #release(connection: Connection): void {
    this.#connectionPool.free(connection.rxAt, connection.rxOrder);
    this.#connectionPool.free(connection.txAt, TX_ORDER);
    this.#connections[connection.index] = null;
    this.#freeIndexes.push(connection.index);
    this.#stats[Stat.connections] = --this.#connectionCount;
    if (connection.dirty) {
      connection.dirty = false;
      const at = this.#dirty.indexOf(connection.index);
      this.#dirty[at] = this.#dirty[--this.#dirtyCount]!;
    }
    for (const cut of this.#cuts) {
      if (cut.connections.delete(connection) && cut.connections.size === 0) this.#finishCut(cut);
    }
    this.#cuts = this.#cuts.filter((cut) => cut.connections.size > 0);
    this.#accept();
    this.#stopIfDone();
  }

  #stopIfDone(): void {
    if (!this.#stopping || this.#stopped || this.#connectionCount > 0) return;
    if (!this.#committer.idle || !this.#cleaner.idle) return;
    this.#stopped = true;
    this.#onStopped();
  }

  #count(stat: number): void {
    this.#stats[stat] = this.#stats[stat]! + 1;
  }
}

function setReceiveBlock(connection: Connection, at: number, order: number): void {
  connection.rxAt = at;
  connection.rxOrder = order;
  connection.rxSizeBytes = UNIT_BYTES << order;
  connection.rxLimitBytes = connection.rxSizeBytes;
}
