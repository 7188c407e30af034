/**
 * The main thread's side of the data workers: starts them, tells them which volumes there are, passes handed-over
 * connections on, and stops them. No request ever comes through here.
 */
import { errnoName } from '@blockwire/native/errors.ts';
import { native } from '@blockwire/native/native.ts';
import { RingWorker } from '@blockwire/native/worker-loop.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { ByteRange } from '../replication/fresh.ts';
import type { Installation } from '../replication/membership.ts';
import type { VolumeOptions } from '../worker/volume.ts';
import { Copies, type ReadChunk, type RunningCopy } from './copies.ts';
import { type Listener, listen } from './listen.ts';
import type { CopyOrder, ExportRecord, FromWorker, ToWorker, WorkerSettings } from './messages.ts';
import { createStats } from './stats.ts';

const SLOTS_PER_WORKER = 4096;

export interface DataPlaneOptions {
  readonly host: string;
  readonly port: number;
  readonly workers: number;
  /** Memory of each worker for requests and connections; a multiple of 1 MiB. */
  readonly poolBytes: number;
  readonly connectionsMax: number;
  readonly log: Logger;
  /** A worker ended by itself: the process cannot serve any more. */
  readonly onWorkerLost: (error: Error) => void;
  readonly onVolumeFailed: (id: string, errno: number) => void;
  /** A block at this offset does not match its checksum; some are left out when there are many. */
  readonly onDamage: (id: string, offset: number) => void;
}

interface Pending {
  remaining: number;
  /** The first answer of one that failed. */
  failure: FromWorker | null;
  /** A failure, or the last worker's answer; `done` carries nothing. */
  readonly resolve: (message: FromWorker) => void;
}

export class DataPlane {
  readonly #options: DataPlaneOptions;
  readonly #listener: Listener;
  readonly #workers: RingWorker[] = [];
  readonly #records = new Map<string, ExportRecord>();
  readonly #pending = new Map<number, Pending>();
  readonly #ready: Promise<void>[] = [];
  readonly #copies = new Copies((id, message) => this.#post(this.#ownerOf(id), message));
  #requests = 0;
  #stopping = false;
  /** The counters of each worker (stats.ts). */
  readonly stats: readonly Float64Array[];
  registeredMemory = true;

  private constructor(options: DataPlaneOptions, listener: Listener) {
    this.#options = options;
    this.#listener = listener;
    const stats: Float64Array[] = [];
    for (let index = 0; index < options.workers; index++) {
      const shared = createStats();
      stats.push(new Float64Array(shared));
      this.#startWorker(index, shared);
    }
    this.stats = stats;
  }

  /** Listens and starts the workers; resolves when all of them accept. */
  static async start(options: DataPlaneOptions): Promise<DataPlane> {
    const plane = new DataPlane(options, await listen(options.host, options.port));
    await Promise.all(plane.#ready);
    return plane;
  }

  get port(): number {
    return this.#listener.port;
  }

  /** Serves a volume. The descriptor stays the caller's, who closes it after `remove`. */
  async add(volume: VolumeOptions): Promise<void> {
    const owner = ownerOf(volume.id, this.#workers.length);
    const opened = await this.#ask([owner], (request) => ({ type: 'open', request, ...volume }));
    const canPunchHole = opened.type === 'opened' && opened.canPunchHole;
    const { id, sizeBytes, installed } = volume;
    await this.#publish({ id, sizeBytes, installed, owner, canPunchHole });
  }

  async #publish(record: ExportRecord): Promise<void> {
    this.#records.set(record.id, record);
    await this.#askAll((request) => ({ type: 'publish', request, record }));
  }

  /** Stops serving a volume; resolves when its connections are cut and nothing of theirs is at work. */
  async remove(id: string): Promise<void> {
    this.#records.delete(id);
    await this.#askAll((request) => ({ type: 'retire', request, id }));
  }

  /**
   * What was persisted of a volume's membership: cuts connections as it says; when the last of their writes is over,
   * regions with an intent get the epoch. Resolves when that is durable. Throws BW_IO.
   */
  async install(id: string, installation: Installation): Promise<void> {
    const { installed } = installation;
    const record = this.#records.get(id);
    if (record !== undefined) this.#records.set(id, { ...record, installed });
    const answer = await this.#askAll((request) => ({ type: 'install', request, id, ...installation }));
    requireSuccess(id, answer);
  }

  /** From now on exports are opened with capabilities that this key verifies. @param key the raw 32 bytes */
  async trust(key: Uint8Array): Promise<void> {
    await this.#askAll((request) => ({ type: 'trust', request, key }));
  }

  /** Holds writes back; resolves when none is at work. `unhold` must follow. */
  async hold(id: string): Promise<void> {
    await this.#askOwner(id, (request) => ({ type: 'hold', request, id }));
  }

  async unhold(id: string): Promise<void> {
    await this.#askOwner(id, (request) => ({ type: 'unhold', request, id }));
  }

  /** The files are longer now: clients that connect from now on see the new size. */
  async resize(id: string, sizeBytes: number): Promise<void> {
    await this.#askOwner(id, (request) => ({ type: 'resize', request, id, sizeBytes }));
    const record = this.#records.get(id);
    if (record !== undefined) await this.#publish({ ...record, sizeBytes });
  }

  /** All in-sync replicas have every write that this one has acknowledged: clears its intents. Throws BW_IO. */
  async checkpoint(id: string): Promise<void> {
    await this.#askOwner(id, (request) => ({ type: 'checkpoint', request, id }));
  }

  /** Begins to copy from another replica what a source reads. */
  copy(order: Omit<CopyOrder, 'request' | 'window'>, read: ReadChunk): RunningCopy {
    return this.#copies.start({ ...order, request: ++this.#requests }, read);
  }

  /** Reads a range, which begins with a block and is at most COPY_CHUNK_BYTES long. False: it cannot be read. */
  async peek(
    id: string,
    { offset, length }: ByteRange,
    into: Uint8Array,
    isAlone: boolean,
  ): Promise<boolean> {
    const window = new SharedArrayBuffer(length);
    const answer = await this.#ask([ownerOf(id, this.#workers.length)], (request) => ({
      ...{ type: 'peek', request, id, offset, length, isAlone, window },
    }));
    into.set(new Uint8Array(window));
    return answer.type === 'done' && answer.errno === 0;
  }

  #ownerOf(id: string): RingWorker {
    return this.#workers[ownerOf(id, this.#workers.length)]!;
  }

  async #askOwner(id: string, message: (request: number) => ToWorker): Promise<void> {
    requireSuccess(id, await this.#ask([ownerOf(id, this.#workers.length)], message));
  }

  /** Cuts every connection, ends the workers, closes the listening socket. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const worker of this.#workers) this.#post(worker, { type: 'stop' });
    await Promise.all(this.#workers.map((worker) => worker.exited));
    native.close(this.#listener.fd);
  }

  #startWorker(index: number, stats: SharedArrayBuffer): void {
    const { poolBytes, connectionsMax } = this.#options;
    const settings: WorkerSettings = {
      index,
      listenFd: this.#listener.fd,
      poolBytes,
      slotCount: SLOTS_PER_WORKER,
      connectionsMax,
      stats,
    };
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#ready.push(promise);
    const worker = new RingWorker({
      module: new URL('../worker/worker.ts', import.meta.url),
      name: `data-${index}`,
      data: settings,
      onMessage: (message) => this.#onMessage(message as FromWorker, resolve),
      onExit: (cause) => {
        const error = new BlockwireError('BW_INTERNAL', `data worker ${index} ended`, { cause });
        reject(error);
        if (!this.#stopping) this.#options.onWorkerLost(error);
      },
    });
    this.#workers.push(worker);
  }

  #onMessage(message: FromWorker, ready: () => void): void {
    switch (message.type) {
      case 'ready':
        if (!message.registeredMemory) {
          this.registeredMemory = false;
          this.#options.log.warn('the kernel refuses to register memory (RLIMIT_MEMLOCK); going without');
        }
        ready();
        break;
      case 'pull':
        this.#copies.pull(message);
        break;
      case 'copied':
        this.#copies.ended(message);
        break;
      case 'handover':
        this.#post(this.#workers[message.to]!, { type: 'adopt', handover: message.handover });
        break;
      case 'connectionFailed':
        this.#options.log.info({ reason: message.reason }, 'a connection failed');
        break;
      case 'checksumFailed':
        this.#options.log.error(
          { volume: message.id, offset: message.offset },
          'a block does not match its checksum: the disk gave back what was not written',
        );
        this.#options.onDamage(message.id, message.offset);
        break;
      case 'volumeFailed':
        this.#options.onVolumeFailed(message.id, message.errno);
        break;
      default: {
        const pending = this.#pending.get(message.request);
        if (pending === undefined) return;
        if (message.type === 'done' && message.errno !== 0) pending.failure ??= message;
        if (--pending.remaining > 0) return;
        this.#pending.delete(message.request);
        pending.resolve(pending.failure ?? message);
      }
    }
  }

  #askAll(message: (request: number) => ToWorker): Promise<FromWorker> {
    return this.#ask([...this.#workers.keys()], message);
  }

  /** Sends to some workers; resolves when all have answered. */
  #ask(workers: readonly number[], message: (request: number) => ToWorker): Promise<FromWorker> {
    const request = ++this.#requests;
    const { promise, resolve } = Promise.withResolvers<FromWorker>();
    this.#pending.set(request, { remaining: workers.length, failure: null, resolve });
    for (const index of workers) this.#post(this.#workers[index]!, message(request));
    return promise;
  }

  #post(worker: RingWorker, message: ToWorker): void {
    worker.post(message);
  }
}

function requireSuccess(id: string, answer: FromWorker): void {
  if (answer.type !== 'done' || answer.errno === 0) return;
  throw new BlockwireError('BW_IO', `the files of ${id} failed: ${errnoName(answer.errno)}`);
}

/** The worker that a volume belongs to: FNV-1a of its id. */
export function ownerOf(id: string, workers: number): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < id.length; i++) hash = Math.imul(hash ^ id.charCodeAt(i), 0x01000193);
  return (hash >>> 0) % workers;
}
