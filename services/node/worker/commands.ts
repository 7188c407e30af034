/**
 * What the main thread asks of a worker about its volumes: publish, retire, install, hold, resize, checkpoint. Many are
 * answered later, when connections are gone, writes are over, or pages are durable.
 */

import type { CopyOrder, ExportRecord, FromWorker, ToWorker } from '../data/messages.ts';
import { type Cut, endsCopies } from '../replication/membership.ts';
import type { Cleaner } from './cleaner.ts';
import type { Connection } from './connection.ts';
import type { Copier } from './copier.ts';
import type { Engine } from './engine.ts';
import { PAGE_IDLE } from './integrity.ts';
import type { Peeker } from './peeker.ts';
import type { RegionCommitter } from './region-commit.ts';
import type { Repairer } from './repairer.ts';
import type { Volume } from './volume.ts';
import type { VolumeTable } from './volume-table.ts';

const ENOENT = 2;

export type Command = Exclude<ToWorker, { type: 'adopt' | 'stop' }>;

/** Connections on their way out that someone waits for. */
interface Cutting {
  readonly connections: Set<Connection>;
  readonly done: () => void;
}

/** A volume to be forgotten. */
interface Retirement {
  readonly request: number;
  readonly id: string;
}

/** An epoch that is being installed: the pages of the region map that must become durable first. */
interface Tagging {
  readonly request: number;
  readonly volume: Volume;
  readonly pages: Set<number>;
}

export interface CommandsHost {
  /** Closes the connections of an export that a cut means, and returns those that are not gone yet. */
  cut(id: string, which: Cut, generation: number): Set<Connection>;
  trust(key: Uint8Array): void;
}

export class Commands {
  readonly exports = new Map<string, ExportRecord>();
  readonly #volumes: VolumeTable;
  readonly #engine: Engine;
  readonly #committer: RegionCommitter;
  readonly #cleaner: Cleaner;
  readonly #copier: Copier;
  readonly #repairer: Repairer;
  readonly #peeker: Peeker;
  readonly #host: CommandsHost;
  readonly #post: (message: FromWorker) => void;
  #cuts: Cutting[] = [];
  /** Cut, but not forgotten before the last of their own operations is over. */
  #retiring: Retirement[] = [];
  #taggings: Tagging[] = [];
  #holds: { readonly request: number; readonly volume: Volume }[] = [];

  constructor(parts: {
    volumes: VolumeTable;
    engine: Engine;
    committer: RegionCommitter;
    cleaner: Cleaner;
    copier: Copier;
    repairer: Repairer;
    peeker: Peeker;
    host: CommandsHost;
    post: (message: FromWorker) => void;
  }) {
    this.#volumes = parts.volumes;
    this.#engine = parts.engine;
    this.#committer = parts.committer;
    this.#cleaner = parts.cleaner;
    this.#copier = parts.copier;
    this.#repairer = parts.repairer;
    this.#peeker = parts.peeker;
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
        this.#endCopies(message.id);
        this.#cut(message.id, 'all', 0, () => this.#retire({ request, id: message.id }));
        return;
      case 'install':
        this.#install(message);
        return;
      case 'trust':
        this.#host.trust(message.key);
        this.#done(request);
        return;
      case 'pulled':
        if (!this.#repairer.pulled(message)) this.#copier.pulled(message);
        return;
      case 'endCopy':
        this.#copier.cancel(request, message.reason);
        this.#repairer.cancel(request, message.reason);
        return;
      case 'copy':
        this.#copy(message);
        return;
      default: {
        const volume = this.#volumes.get(message.id);
        if (volume === undefined) this.#post({ type: 'done', request, errno: ENOENT });
        else this.#runOn(volume, message);
      }
    }
  }

  #runOn(
    volume: Volume,
    message: Exclude<
      Command,
      { type: 'open' | 'publish' | 'retire' | 'install' | 'trust' | 'pulled' | 'endCopy' | 'copy' }
    >,
  ): void {
    const { request } = message;
    switch (message.type) {
      case 'peek':
        this.#peeker.start(message, volume);
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
    const over: Cutting[] = [];
    this.#cuts = this.#cuts.filter((cut) => {
      if (cut.connections.delete(connection) && cut.connections.size === 0) over.push(cut);
      return cut.connections.size > 0;
    });
    for (const { done } of over) done();
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

  #install(message: Extract<Command, { type: 'install' }>): void {
    const { request, id, installed, cut } = message;
    const record = this.exports.get(id);
    if (record !== undefined) this.exports.set(id, { ...record, installed });
    const volume = this.#volumes.get(id);
    const before = volume?.membership?.installed;
    if (volume !== undefined && before !== undefined && endsCopies(before, installed)) {
      this.#copier.cancelAll(volume, 'the membership has changed');
      this.#repairer.cancelAll(volume, 'the membership has changed');
    }
    // From here on sessions are judged by it.
    volume?.install(message);
    this.#cut(id, cut, installed.generation, () => {
      if (volume === undefined) this.#done(request);
      else this.#tag(request, volume, installed.epoch);
    });
  }

  #copy(order: CopyOrder): void {
    const volume = this.#volumes.get(order.id);
    if (volume === undefined || !this.exports.has(order.id)) {
      this.#post({ type: 'copied', request: order.request, error: 'the replica is not here' });
    } else {
      (order.what === 'repair' ? this.#repairer : this.#copier).start(order, volume);
    }
  }

  #endCopies(id: string): void {
    const volume = this.#volumes.get(id);
    if (volume === undefined) return;
    this.#copier.cancelAll(volume, 'the replica is being removed');
    this.#repairer.cancelAll(volume, 'the replica is being removed');
  }

  /** Cuts connections of an export; `done` runs when nothing of theirs is at work any more. */
  #cut(id: string, which: Cut, generation: number, done: () => void): void {
    const connections = this.#host.cut(id, which, generation);
    if (connections.size > 0) this.#cuts.push({ connections, done });
    else done();
  }

  #retire(retirement: Retirement): void {
    if (this.#volumes.get(retirement.id)?.busy === true) {
      this.#retiring.push(retirement);
      return;
    }
    this.#volumes.delete(retirement.id);
    this.#done(retirement.request);
  }

  #finishRetiring(): void {
    const retiring = this.#retiring;
    this.#retiring = [];
    for (const retirement of retiring) this.#retire(retirement);
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
