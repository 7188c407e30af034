/**
 * A data worker: its parts put together, and what happens at each completion, batch and tick. Everything here runs on one
 * thread and one ring.
 *
 *   accept ─▶ handshake ─▶ receiver ─▶ engine ─▶ transmitter ─▶ socket
 *                │            ▲ at the end of each batch, for every connection that something happened to
 *                └─▶ another worker, when it owns the volume
 */

import { NBD_CMD_BLOCKWIRE_MARK } from '@blockwire/proto/nbd/constants.ts';
import { CapabilityVerifier } from '@blockwire/shared/capability.ts';
import type { FromWorker, ToWorker, WorkerSettings } from '../data/messages.ts';
import { Stat } from '../data/stats.ts';
import type { Cut } from '../replication/membership.ts';
import { REGION_SIZE_BYTES, REGIONS_PER_PAGE } from '../store/region-table.ts';
import { Admission } from './admission.ts';
import { BufferPool, UNIT_BYTES } from './buffer-pool.ts';
import { CLEAN_BASE, Cleaner } from './cleaner.ts';
import { Commands } from './commands.ts';
import {
  CLOSING,
  type Connection,
  DRAINING,
  ENTERING,
  HANDSHAKE,
  LOCAL,
  TRANSMISSION,
} from './connection.ts';
import { ConnectionTable } from './connection-table.ts';
import { Copier } from './copier.ts';
import { EIO } from './disk-errors.ts';
import { Engine } from './engine.ts';
import { Gathering } from './gathering.ts';
import type { Incoming } from './incoming.ts';
import { Lifecycle } from './lifecycle.ts';
import { LocalRequests } from './local-requests.ts';
import { type NodeIo, OP_ACCEPT, OP_DISK, OP_RECEIVE, OP_RECEIVE_PAYLOAD, OP_SEND } from './node-io.ts';
import { Peeker } from './peeker.ts';
import { ReadBudget } from './read-budget.ts';
import { Receiver } from './receiver.ts';
import { COMMIT_BASE, RegionCommitter } from './region-commit.ts';
import { Repairer } from './repairer.ts';
import { RequestMemory } from './request-memory.ts';
import { Slots } from './slots.ts';
import { Transmitter } from './transmitter.ts';
import type { Volume } from './volume.ts';
import { PROBE_BASE, VolumeTable } from './volume-table.ts';

const PAGE_BLOCKS = (REGIONS_PER_PAGE * REGION_SIZE_BYTES) / UNIT_BYTES;

export class NodeServer {
  /** Monotonic milliseconds, as of the last tick. */
  nowMs = 0;
  readonly #post: (message: FromWorker) => void;
  readonly #onStopped: () => void;
  readonly #stats: Float64Array;
  readonly #slots: Slots;
  readonly #memory: RequestMemory;
  readonly #admission: Admission;
  readonly #connections: ConnectionTable;
  readonly #volumes: VolumeTable;
  readonly #engine: Engine;
  readonly #gathering: Gathering;
  readonly #budget: ReadBudget;
  readonly #receiver: Receiver;
  readonly #transmitter: Transmitter;
  readonly #committer: RegionCommitter;
  readonly #cleaner: Cleaner;
  readonly #commands: Commands;
  readonly #copier: Copier;
  readonly #repairer: Repairer;
  readonly #peeker: Peeker;
  readonly #lifecycle: Lifecycle;
  #stopped = false;
  #checksumReported = false;
  readonly #resume = (index: number): void => {
    const connection = this.#connections.find(index);
    // Another one by now, perhaps: it loses nothing by being served.
    if (connection !== null) this.#connections.touch(connection);
  };
  readonly #serveWaiting = (connection: Connection): void => {
    this.#receiver.serve(connection);
    this.#connections.touch(connection);
  };

  constructor(parts: {
    settings: WorkerSettings;
    io: NodeIo;
    post: (message: FromWorker) => void;
    onStopped: () => void;
    nowSeconds?: () => number;
  }) {
    const { settings, io, post } = parts;
    const stats = new Float64Array(settings.stats);
    const slots = new Slots(settings.slotCount);
    // Memory for requests, and behind it for the connections' own blocks: neither can starve the other.
    const pool = new BufferPool(settings.poolBytes);
    const connections = new ConnectionTable(settings.connectionsMax, io.memory, settings.poolBytes);
    const memory = new RequestMemory(slots, pool);
    const admission = new Admission(memory, stats);
    const volumes = new VolumeTable(io, slots);
    const engine = new Engine({ slots, memory, io, host: this, stats });
    const gathering = new Gathering(io, settings.connectionsMax);
    const budget = new ReadBudget(settings.connectionsMax);
    const receiver = new Receiver({
      ...{ slots, memory, admission, engine, gathering, budget, io, host: this, stats },
    });
    const transmitter = new Transmitter({ slots, memory, engine, io, host: this, stats });
    const committer = new RegionCommitter(io, pool, this);
    const cleaner = new Cleaner(io, committer, this);
    const nodeMemory = io.memory;
    const local = new LocalRequests({ slots, memory, admission, engine, connections, nodeMemory });
    const copier = new Copier({ local, host: this, post });
    const repairer = new Repairer({ local, host: this, post });
    const peeker = new Peeker({ local, post });
    const commands = new Commands({
      volumes,
      engine,
      committer,
      cleaner,
      copier,
      repairer,
      peeker,
      host: this,
      post,
    });
    this.#lifecycle = new Lifecycle({
      ...{ settings, io, post, stats, slots, memory, connections, volumes },
      ...{ exports: commands.exports, engine, receiver, transmitter, host: this },
      nowSeconds: parts.nowSeconds ?? (() => Date.now() / 1000),
    });
    this.#post = post;
    this.#onStopped = parts.onStopped;
    this.#stats = stats;
    this.#slots = slots;
    this.#memory = memory;
    this.#admission = admission;
    this.#connections = connections;
    this.#volumes = volumes;
    this.#engine = engine;
    this.#gathering = gathering;
    this.#budget = budget;
    this.#receiver = receiver;
    this.#transmitter = transmitter;
    this.#committer = committer;
    this.#cleaner = cleaner;
    this.#commands = commands;
    this.#copier = copier;
    this.#repairer = repairer;
    this.#peeker = peeker;
    io.sink = this;
  }

  get connectionCount(): number {
    return this.#connections.count;
  }

  /** Begins to accept. */
  start(): void {
    this.#lifecycle.accept();
  }

  onMessage(message: ToWorker): void {
    switch (message.type) {
      case 'adopt':
        this.#lifecycle.adopt(message.handover);
        break;
      case 'stop':
        this.#lifecycle.stopping = true;
        this.#lifecycle.closeAll(() => true);
        this.#copier.cancelAll(null, 'the node is stopping');
        this.#repairer.cancelAll(null, 'the node is stopping');
        this.#stopIfDone();
        break;
      default:
        this.#commands.run(message);
    }
  }

  complete(operation: number, data: number, result: number): void {
    switch (operation) {
      case OP_DISK:
        if (data < COMMIT_BASE) this.#engine.complete(data, result);
        else if (data < CLEAN_BASE) this.#committer.complete(data, result);
        else if (data < PROBE_BASE) this.#cleaner.complete(data, result);
        else this.#volumes.probed(data, result);
        break;
      case OP_RECEIVE:
        this.#lifecycle.received(this.#connections.get(data), result);
        break;
      case OP_RECEIVE_PAYLOAD: {
        const connection = this.#connections.get(data);
        this.#receiver.payloadReceived(connection, result);
        this.#connections.touch(connection);
        break;
      }
      case OP_SEND: {
        const connection = this.#connections.get(data);
        this.#transmitter.sent(connection, result);
        this.#connections.touch(connection);
        break;
      }
      case OP_ACCEPT:
        this.#lifecycle.accepted(result);
        break;
      default:
    }
  }

  /** After each batch of completions: parses, sends, closes. */
  onBatchEnd(): void {
    this.#engine.settleBatch();
    this.#gathering.release(this.#resume);
    this.#budget.renew(this.#resume);
    this.#serveTouched();
    if (this.#admission.someoneWaits) {
      this.#admission.serveWaiting(this.#serveWaiting);
      this.#serveTouched();
    }
    this.#committer.flush();
    this.#stats[Stat.poolFreeBytes] = this.#memory.freeBytes;
    this.#commands.onBatchEnd();
    if (this.#lifecycle.stopping) this.#stopIfDone();
  }

  /** The longest that the worker may wait for completions, in microseconds; -1: without bound. */
  get waitUsMax(): number {
    return this.#budget.someoneWaits ? 0 : this.#gathering.leftUs;
  }

  onTick(nowMs: number): void {
    this.nowMs = nowMs;
    this.#checksumReported = false;
    this.#stats[Stat.regionPageWrites] = this.#committer.writtenCount;
    if (!this.#lifecycle.stopping) {
      for (const volume of this.#volumes.values()) {
        this.#cleaner.tick(volume);
        if (volume.integrity.lostChecksums) this.volumeFailed(volume, EIO);
      }
    }
    this.#copier.onTick();
    this.#repairer.onTick();
    this.#lifecycle.onTick(nowMs, this.#admission.someoneWaits);
  }

  #serveTouched(): void {
    for (;;) {
      const connection = this.#connections.takeTouched();
      if (connection === null) return;
      switch (connection.phase) {
        case HANDSHAKE:
          this.#lifecycle.pump(connection);
          break;
        case TRANSMISSION:
        case DRAINING:
          this.#receiver.serve(connection);
          this.#transmitter.flush(connection);
          // Asked to disconnect, and everything before that is answered.
          if (connection.phase === DRAINING && connection.inFlight === 0) this.#lifecycle.close(connection);
          break;
        case ENTERING:
          break;
        case LOCAL:
          connection.local!.serve(connection);
          break;
        default:
          this.#lifecycle.releaseIfIdle(connection);
      }
    }
  }

  #stopIfDone(): void {
    if (!this.#lifecycle.stopping || this.#stopped || this.#connections.count > 0) return;
    if (!this.#committer.idle || !this.#cleaner.idle || !this.#copier.idle) return;
    if (!this.#peeker.idle || !this.#repairer.idle) return;
    this.#stopped = true;
    this.#onStopped();
  }

  // What the parts need of each other

  connectionOf(slot: number): Connection {
    return this.#connections.get(this.#slots.connection[slot]!);
  }

  finished(slot: number): void {
    const connection = this.connectionOf(slot);
    if (slot === connection.serialSlot) connection.serialReady = true;
    else if (connection.phase === CLOSING) this.#memory.give(slot, connection);
    else connection.done.push(this.#slots, slot);
    this.#connections.touch(connection);
  }

  roomFreed(connection: Connection): void {
    this.#connections.touch(connection);
  }

  fail(connection: Connection, reason: string): void {
    this.#lifecycle.fail(connection, reason);
  }

  marked(connection: Connection, { type, offset, length }: Incoming): void {
    const volume = connection.volume!;
    const mark = { number: offset, epoch: length };
    if (type === NBD_CMD_BLOCKWIRE_MARK) volume.mark(mark);
    else this.#cleaner.checkpointOf(volume, mark);
  }

  cut(id: string, which: Cut, generation: number): Set<Connection> {
    if (which === 'none') return new Set();
    return this.#lifecycle.closeAll(
      ({ exportId, session }) => exportId === id && (which === 'all' || session!.generation < generation),
    );
  }

  trust(key: Uint8Array): void {
    this.#lifecycle.sessions.key = new CapabilityVerifier(key);
  }

  connectionGone(connection: Connection): void {
    this.#commands.connectionGone(connection);
    this.#stopIfDone();
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
    this.#engine.regionsCommitted(volume, page * PAGE_BLOCKS, (page + 1) * PAGE_BLOCKS, errno);
    this.#commands.pageCommitted(volume, page, errno);
  }
}
