/**
 * Who is let in, and when. What a client says is judged twice: at the worker that happens to have its handshake, which can
 * answer why not, and at the one that owns the volume, whose word counts.
 *
 *   handshake ──look-up──▶ hand over ──▶ admitted ──▶ nothing of the link's earlier attempts is at work ──▶ transmission
 *
 * Not a byte of a session is taken from its socket before the last of those earlier writes is over.
 */
import {
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_UNKNOWN,
} from '@blockwire/proto/nbd/constants.ts';
import type { ExportDescription, ExportRefusal } from '@blockwire/proto/nbd/server-handshake.ts';
import type { CapabilityVerifier } from '@blockwire/shared/capability.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { type ExportName, parseExportName } from '@blockwire/shared/export-name.ts';
import { describeExport } from '../data/export.ts';
import type { ExportRecord } from '../data/messages.ts';
import { admit, readSession, type Session } from '../replication/session.ts';
import type { Connection } from './connection.ts';
import type { Volume } from './volume.ts';
import type { VolumeTable } from './volume-table.ts';

export interface SessionsHost {
  readonly stopping: boolean;
  /** Closes the connections that `which` picks, and returns those that are not gone yet. */
  closeAll(which: (connection: Connection) => boolean): Set<Connection>;
  /** Nothing stands in its way any more. */
  begin(connection: Connection): void;
  close(connection: Connection): void;
}

interface Waiting {
  readonly connection: Connection;
  readonly volume: Volume;
  /** Connections of earlier attempts that are not gone yet. */
  readonly earlier: Set<Connection>;
}

export class Sessions {
  /** Null: the node belongs to no cluster. */
  key: CapabilityVerifier | null = null;
  readonly #exports: ReadonlyMap<string, ExportRecord>;
  readonly #volumes: VolumeTable;
  readonly #host: SessionsHost;
  readonly #nowSeconds: () => number;
  #waiting: Waiting[] = [];

  constructor(parts: {
    exports: ReadonlyMap<string, ExportRecord>;
    volumes: VolumeTable;
    host: SessionsHost;
    /** Since 1970: capabilities expire. */
    nowSeconds: () => number;
  }) {
    this.#exports = parts.exports;
    this.#volumes = parts.volumes;
    this.#host = parts.host;
    this.#nowSeconds = parts.nowSeconds;
  }

  /** Names without a capability open nothing in a cluster, so none is told. */
  listed(): Iterable<string> {
    return this.key === null ? this.#exports.keys() : [];
  }

  /** Answers a handshake; notes with the connection what it may do. */
  lookUp(connection: Connection, text: string): ExportDescription | ExportRefusal {
    if (this.#host.stopping) return { reply: NBD_REP_ERR_SHUTDOWN, message: 'the node is stopping' };
    try {
      const name = parseExportName(text);
      const record = this.#exports.get(exportIdOf(name));
      if (record === undefined) throw new BlockwireError('BW_NOT_FOUND', 'this node has no such export');
      const installedGeneration = record.installed?.generation ?? 0;
      const session = readSession(name, this.key, { nowSeconds: this.#nowSeconds(), installedGeneration });
      if (record.installed !== null) admit(record.installed, session);
      requireLatest(this.#volumes.get(record.id), session);
      connection.exportId = record.id;
      connection.session = session;
      return describeExport(record, session);
    } catch (error) {
      const { code, message } = toBlockwireError(error);
      const isUnknown = code === 'BW_NOT_FOUND' || code === 'BW_INVALID_ARGUMENT';
      return { reply: isUnknown ? NBD_REP_ERR_UNKNOWN : NBD_REP_ERR_POLICY, message: `${code}: ${message}` };
    }
  }

  /** The handshake is over, here or at another worker: begins the session, at once or later, or closes it. */
  enter(connection: Connection, volume: Volume): void {
    const session = connection.session!;
    const { link, attempt } = session;
    if (!this.#isAdmitted(volume, session)) {
      this.#host.close(connection);
      return;
    }
    if (link === null) {
      this.#host.begin(connection);
      return;
    }
    volume.attempts.set(link, attempt);
    const earlier = this.#host.closeAll(
      (other) => other.volume === volume && other.session?.link === link && other.session.attempt < attempt,
    );
    if (earlier.size === 0) this.#host.begin(connection);
    else this.#waiting.push({ connection, volume, earlier });
  }

  /** A connection is gone: lets in who waited for the last of its kind. */
  connectionGone(gone: Connection): void {
    if (this.#waiting.length === 0) return;
    const ready: Waiting[] = [];
    this.#waiting = this.#waiting.filter((waiting) => {
      if (waiting.connection === gone) return false;
      if (waiting.earlier.delete(gone) && waiting.earlier.size === 0) ready.push(waiting);
      return waiting.earlier.size > 0;
    });
    for (const { connection, volume } of ready) {
      if (this.#isAdmitted(volume, connection.session!)) this.#host.begin(connection);
      else this.#host.close(connection);
    }
  }

  #isAdmitted(volume: Volume, session: Session): boolean {
    try {
      if (volume.membership !== null) admit(volume.membership.installed, session);
      requireLatest(volume, session);
      return true;
    } catch {
      // It connects again, and is told why at its handshake.
      return false;
    }
  }
}

function requireLatest(volume: Volume | undefined, { link, attempt }: Session): void {
  if (volume === undefined || link === null) return;
  const latest = volume.attempts.get(link);
  if (latest === undefined || attempt >= latest) return;
  throw new BlockwireError(
    'BW_CONFLICT',
    `attempt ${attempt} of ${link} is older than ${latest}, which is here`,
  );
}

/** The export behind a name. */
function exportIdOf({ volumeId, snapshot }: ExportName): string {
  return snapshot === null ? volumeId : `${volumeId}@${snapshot}`;
}
