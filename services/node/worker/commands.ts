/**
 * What the main thread asks of a worker about its volumes: publish, retire, fence, tag, hold, resize, checkpoint. Many are
 * answered later, when connections are gone, writes are over, or pages are durable.
 */
import type { ExportRecord, FromWorker, ToWorker } from '../data/messages.ts';
import type { Cleaner } from './cleaner.ts';
import type { Connection } from './connection.ts';
import type { Engine } from './engine.ts';
import { PAGE_IDLE } from './integrity.ts';
import type { RegionCommitter } from './region-commit.ts';
import type { Volume } from './volume.ts';
import type { VolumeTable } from './volume-table.ts';

const ENOENT = 2;

export type Command = Exclude<ToWorker, { type: 'adopt' | 'stop' }>;

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

export interface CommandsHost {
  /** Closes the connections of an export below a generation, and returns them. */
  closeBelow(id: string, generation: number): Set<Connection>;
}

export class Commands {
  readonly exports = new Map<string, ExportRecord>();
  readonly #volumes: VolumeTable;
  readonly #engine: Engine;
  readonly #committer: RegionCommitter;
  readonly #cleaner: Cleaner;
  readonly #host: CommandsHost;
  readonly #post: (message: FromWorker) => void;
  #cuts: Cut[] = [];
  /** Cut, but not forgotten before the last of their own operations is over. */
  #retiring: Cut[] = [];
  #taggings: Tagging[] = [];
  #holds: { readonly request: number; readonly volume: Volume }[] = [];

  constructor(parts: {
    volumes: VolumeTable;
    engine: Engine;
    committer: RegionCommitter;
    cleaner: Cleaner;
    host: CommandsHost;
    post: (message: FromWorker) => void;
  }) {
    this.#volumes = parts.volumes;
    this.#engine = parts.engine;
    this.#committer = parts.committer;
    this.#cleaner = parts.cleaner;
    this.#host = parts.host;
    this.#post = parts.post;
  }

  run(message: Command): void {
    const { request } = message;
    switch (message.type) {
      case 'open':
        this.#volumes.open(message, ({ canPunchHole, canZeroRange }) => {
          this.#post({ type: 'opened', request, canPunchHole, canZeroRange });
        });
        return;
      case 'publish':
        this.exports.set(message.record.id, message.record);
        this.#done(request);
        return;
      case 'retire':
        this.exports.delete(message.id);
        this.#cut(request, message.id, Number.POSITIVE_INFINITY, true);
        return;
      case 'fence':
        this.#fence(message);
        return;
      default: {
        const volume = this.#volumes.get(message.id);
        if (volume === undefined) this.#post({ type: 'done', request, errno: ENOENT });
        else this.#runOn(volume, message);
      }
    }
  }

  #runOn(volume: Volume, message: Exclude<Command, { type: 'open' | 'publish' | 'retire' | 'fence' }>): void {
    const { request } = message;
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

  /** After each batch: answers what has come true meanwhile. */
  onBatchEnd(): void {
    if (this.#holds.length > 0) this.#answerHolds();
    if (this.#retiring.length > 0) this.#finishRetiring();
  }

  /** A connection is gone: tells whoever waited for its end. */
  connectionGone(connection: Connection): void {
    if (this.#cuts.length === 0) return;
    for (const cut of this.#cuts) {
      if (cut.connections.delete(connection) && cut.connections.size === 0) this.#finishCut(cut);
    }
    this.#cuts = this.#cuts.filter((cut) => cut.connections.size > 0);
  }

  /** A page of a region map is durable, or could not be written. */
  pageCommitted(volume: Volume, page: number, errno: number): void {
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

  #fence(message: Extract<Command, { type: 'fence' }>): void {
    const { request, id, generation } = message;
    const record = this.exports.get(id);
    if (record !== undefined) this.exports.set(id, { ...record, generation });
    const volume = this.#volumes.get(id);
    if (volume !== undefined) volume.generation = generation;
    this.#cut(request, id, generation, false);
  }

  /** Cuts the connections of an export below a generation; answers when nothing of theirs is at work any more. */
  #cut(request: number, id: string, generation: number, retire: boolean): void {
    const connections = this.#host.closeBelow(id, generation);
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
}
