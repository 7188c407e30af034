/** The control plane's REST interface as typed functions; answers are checked in http.ts. */
import { randomUUID } from 'node:crypto';
import { CommandError, usageError } from '../errors.ts';
import { requestEmpty, requestJson } from './http.ts';
import {
  type Agent,
  AgentList,
  Attachment,
  AttachmentList,
  Snapshot,
  SnapshotList,
  StorageNode,
  StorageNodeList,
  Volume,
  VolumeList,
} from './schema.ts';

export const REST_DEFAULT = 'http://127.0.0.1:7400';

const VOLUME_ID = /^vol-[0-9a-f]{12}$/;

export interface CreateVolume {
  readonly name: string;
  /** Only a clone may leave these out. */
  readonly sizeBytes?: number;
  readonly replicas?: number;
  /** The snapshot to begin with: id of its volume, and its name. */
  readonly source?: { readonly volume: string; readonly snapshot: string };
}

export interface CreateAttachment {
  /** Volume id. */
  readonly volume: string;
  readonly agent?: string;
  readonly datapath?: string;
  readonly queues?: number;
  readonly queueDepth?: number;
  readonly blockSizeBytes?: number;
  readonly readOnly?: boolean;
  readonly ioTimeoutMs?: number;
  readonly force?: boolean;
}

/** All methods throw CommandError: the server's code, or BW_PEER_UNREACHABLE, BW_TIMEOUT, BW_PROTOCOL. */
export class RestClient {
  readonly #base: string;

  /** @param base such as http://127.0.0.1:7400; throws a usage error when it is not an http(s) URL. */
  constructor(base: string) {
    const url = URL.canParse(base) ? new URL(base) : null;
    if (url === null || !/^https?:$/.test(url.protocol))
      throw usageError(`"${base}" is not a REST address such as ${REST_DEFAULT}`);
    this.#base = base;
  }

  createVolume(body: CreateVolume): Promise<Volume> {
    const request = { method: 'POST', path: '/v1/volumes', body, idempotencyKey: randomUUID() } as const;
    return requestJson(this.#base, request, Volume);
  }

  listVolumes(): Promise<Volume[]> {
    return requestJson(this.#base, { method: 'GET', path: '/v1/volumes' }, VolumeList);
  }

  /** @param ref an id (`vol-` and 12 hex digits) or a name. Throws BW_VOLUME_NOT_FOUND. */
  async findVolume(ref: string): Promise<Volume> {
    if (VOLUME_ID.test(ref)) return requestJson(this.#base, { method: 'GET', path: volumePath(ref) }, Volume);
    const query = new URLSearchParams({ name: ref });
    const path = `/v1/volumes?${query}`;
    const volumes = await requestJson(this.#base, { method: 'GET', path }, VolumeList);
    const volume = volumes.find(({ name }) => name === ref);
    if (volume === undefined) throw new CommandError('BW_VOLUME_NOT_FOUND', `no volume is named "${ref}"`);
    return volume;
  }

  /** The id that this is, also of a volume that is gone, or that is named so. Throws BW_VOLUME_NOT_FOUND. */
  async findVolumeId(ref: string): Promise<string> {
    return VOLUME_ID.test(ref) ? ref : (await this.findVolume(ref)).id;
  }

  /** @param sizeBytes no less than now */
  resizeVolume(id: string, sizeBytes: number): Promise<Volume> {
    const request = { method: 'PATCH', path: volumePath(id), body: { sizeBytes } } as const;
    return requestJson(this.#base, request, Volume);
  }

  /** Without `snapshots`, BW_VOLUME_HAS_SNAPSHOTS when there are any. */
  deleteVolume(id: string, options: { snapshots: boolean } = { snapshots: false }): Promise<void> {
    const path = `${volumePath(id)}${options.snapshots ? '?snapshots=delete' : ''}`;
    return requestEmpty(this.#base, { method: 'DELETE', path });
  }

  /** Lets a stale replica count; what it lacks is lost. */
  promoteReplica(id: string, node: string): Promise<Volume> {
    const path = `${volumePath(id)}/replicas/${encodeURIComponent(node)}/promote`;
    return requestJson(this.#base, { method: 'POST', path, body: { acceptLoss: true } }, Volume);
  }

  /** Begins to compare its replicas. */
  scrubVolume(id: string): Promise<Volume> {
    return requestJson(this.#base, { method: 'POST', path: `${volumePath(id)}/scrub` }, Volume);
  }

  createSnapshot(id: string, name: string): Promise<Snapshot> {
    const path = `${volumePath(id)}/snapshots`;
    const request = { method: 'POST', path, body: { name }, idempotencyKey: randomUUID() } as const;
    return requestJson(this.#base, request, Snapshot);
  }

  listSnapshots(id: string): Promise<Snapshot[]> {
    return requestJson(this.#base, { method: 'GET', path: `${volumePath(id)}/snapshots` }, SnapshotList);
  }

  deleteSnapshot(id: string, name: string): Promise<void> {
    const path = `${volumePath(id)}/snapshots/${encodeURIComponent(name)}`;
    return requestEmpty(this.#base, { method: 'DELETE', path });
  }

  createAttachment(body: CreateAttachment): Promise<Attachment> {
    const request = { method: 'POST', path: '/v1/attachments', body, idempotencyKey: randomUUID() } as const;
    return requestJson(this.#base, request, Attachment);
  }

  /** Those of one volume. */
  async listAttachments(volumeId: string): Promise<Attachment[]> {
    const request = { method: 'GET', path: '/v1/attachments' } as const;
    const all = await requestJson(this.#base, request, AttachmentList);
    return all.filter(({ volume }) => volume === volumeId);
  }

  deleteAttachment(id: string, options: { force: boolean }): Promise<void> {
    const path = `/v1/attachments/${encodeURIComponent(id)}${options.force ? '?force=true' : ''}`;
    return requestEmpty(this.#base, { method: 'DELETE', path });
  }

  listNodes(timeoutMs?: number): Promise<StorageNode[]> {
    return requestJson(
      this.#base,
      { method: 'GET', path: '/v1/nodes', ...within(timeoutMs) },
      StorageNodeList,
    );
  }

  /** Its replicas move to other nodes. */
  drainNode(id: string): Promise<StorageNode> {
    return requestJson(this.#base, { method: 'POST', path: drainPath(id) }, StorageNode);
  }

  /** The end of a drain. */
  keepNode(id: string): Promise<StorageNode> {
    return requestJson(this.#base, { method: 'DELETE', path: drainPath(id) }, StorageNode);
  }

  listAgents(timeoutMs?: number): Promise<Agent[]> {
    return requestJson(this.#base, { method: 'GET', path: '/v1/agents', ...within(timeoutMs) }, AgentList);
  }
}

function volumePath(id: string): string {
  return `/v1/volumes/${encodeURIComponent(id)}`;
}

function drainPath(id: string): string {
  return `/v1/nodes/${encodeURIComponent(id)}/drain`;
}

function within(timeoutMs: number | undefined): { timeoutMs?: number } {
  return timeoutMs === undefined ? {} : { timeoutMs };
}
