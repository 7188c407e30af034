/** The control plane's REST interface as tests use it: answers are checked, refusals come back as they are. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { type Static, type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';

const REQUEST_MS_MAX = 120_000;

export const Volume = Type.Object({
  id: Type.String({ pattern: '^vol-[0-9a-f]{12}$' }),
  name: Type.String(),
  sizeBytes: Type.Integer(),
  state: Type.String(),
  degraded: Type.Boolean(),
  generation: Type.Integer(),
  epoch: Type.Integer(),
  replicas: Type.Array(Type.Object({ node: Type.String(), state: Type.String(), uri: Type.String() })),
  scrub: Type.Union([
    Type.Null(),
    Type.Object({
      finishedAt: Type.Union([Type.String(), Type.Null()]),
      replicas: Type.Array(
        Type.Object({
          node: Type.String(),
          mismatchedRegions: Type.Integer(),
          repairedRegions: Type.Integer(),
          error: Type.Union([Type.String(), Type.Null()]),
        }),
      ),
    }),
  ]),
});
export type Volume = Static<typeof Volume>;

export const Attachment = Type.Object({
  id: Type.String({ pattern: '^att-[0-9a-f]{12}$' }),
  volume: Type.String(),
  agent: Type.String(),
  device: Type.String({ pattern: '^/dev/ublkb\\d+$' }),
  datapath: Type.String(),
  state: Type.String(),
  io: Type.String(),
});
export type Attachment = Static<typeof Attachment>;

const Nodes = Type.Array(Type.Object({ id: Type.String(), state: Type.String(), nbd: Type.String() }));
const Agents = Type.Array(Type.Object({ id: Type.String(), state: Type.String() }));
const Refusal = Type.Object({ code: Type.String(), message: Type.String() });

type Method = 'GET' | 'POST' | 'PATCH' | 'DELETE';

export interface AttachBody {
  readonly agent?: string;
  /** Takes it from who has it. */
  readonly force?: boolean;
  readonly volume: string;
  readonly datapath?: string;
  readonly queues?: number;
  readonly queueDepth?: number;
  readonly blockSizeBytes?: number;
  readonly readOnly?: boolean;
  readonly ioTimeoutMs?: number;
}

export interface Answer {
  readonly status: number;
  readonly body: unknown;
}

export class Rest {
  readonly url: string;

  /** @param url such as http://127.0.0.1:7400 */
  constructor(url: string) {
    this.url = url;
  }

  /** One request; any status is an answer. */
  async call(method: Method, path: string, body?: unknown): Promise<Answer> {
    const response = await fetch(new URL(path, this.url), {
      method,
      headers: body === undefined ? {} : { 'content-type': 'application/json' },
      body: body === undefined ? null : JSON.stringify(body),
      signal: AbortSignal.timeout(REQUEST_MS_MAX),
    });
    const text = await response.text();
    return { status: response.status, body: text === '' ? null : (JSON.parse(text) as unknown) };
  }

  createVolume(body: { name: string; sizeBytes: number; replicas: number }): Promise<Volume> {
    return this.#expect(201, Volume, 'POST', '/v1/volumes', body);
  }

  volume(id: string): Promise<Volume> {
    return this.#expect(200, Volume, 'GET', `/v1/volumes/${id}`);
  }

  /** A volume that begins with the content of a snapshot, of its size and on as many nodes. */
  cloneVolume(body: { name: string; source: { volume: string; snapshot: string } }): Promise<Volume> {
    return this.#expect(201, Volume, 'POST', '/v1/volumes', body);
  }

  async createSnapshot(volumeId: string, name: string): Promise<void> {
    await this.#expect(201, Type.Object({}), 'POST', `/v1/volumes/${volumeId}/snapshots`, { name });
  }

  /** Lets a stale replica count. */
  promote(volumeId: string, node: string): Promise<Volume> {
    const path = `/v1/volumes/${volumeId}/replicas/${node}/promote`;
    return this.#expect(200, Volume, 'POST', path, { acceptLoss: true });
  }

  /** Begins to compare the replicas. */
  scrub(volumeId: string): Promise<Volume> {
    return this.#expect(202, Volume, 'POST', `/v1/volumes/${volumeId}/scrub`);
  }

  /** Moves a node's replicas to other nodes, or lets it keep them. */
  async drain(node: string, { end = false } = {}): Promise<void> {
    await this.#expect(200, Type.Object({}), end ? 'DELETE' : 'POST', `/v1/nodes/${node}/drain`);
  }

  resize(id: string, sizeBytes: number): Promise<Volume> {
    return this.#expect(200, Volume, 'PATCH', `/v1/volumes/${id}`, { sizeBytes });
  }

  attach(body: AttachBody): Promise<Attachment> {
    return this.#expect(201, Attachment, 'POST', '/v1/attachments', body);
  }

  attachment(id: string): Promise<Attachment> {
    return this.#expect(200, Attachment, 'GET', `/v1/attachments/${id}`);
  }

  async detach(id: string, { force = false } = {}): Promise<void> {
    await this.#expect(204, Type.Null(), 'DELETE', `/v1/attachments/${id}${force ? '?force=true' : ''}`);
  }

  /** With its snapshots. */
  async deleteVolume(id: string): Promise<void> {
    await this.#expect(204, Type.Null(), 'DELETE', `/v1/volumes/${id}?snapshots=delete`);
  }

  nodes(): Promise<Static<typeof Nodes>> {
    return this.#expect(200, Nodes, 'GET', '/v1/nodes');
  }

  agents(): Promise<Static<typeof Agents>> {
    return this.#expect(200, Agents, 'GET', '/v1/agents');
  }

  /** The status and the code of a request that is refused: `409 BW_VOLUME_IN_USE`. */
  async refusal(method: Method, path: string, body?: unknown): Promise<string> {
    const answer = await this.call(method, path, body);
    const code = Value.Check(Refusal, answer.body) ? answer.body.code : JSON.stringify(answer.body);
    return `${answer.status} ${code}`;
  }

  /** Throws the control plane's own words unless the status and the schema are as expected. */
  async #expect<Schema extends TSchema>(
    status: number,
    schema: Schema,
    method: Method,
    path: string,
    body?: unknown,
  ): Promise<Static<Schema>> {
    const answer = await this.call(method, path, body);
    if (answer.status === status && Value.Check(schema, answer.body)) return answer.body;
    throw new BlockwireError(
      'BW_PROTOCOL',
      `${method} ${path}: HTTP ${answer.status} ${JSON.stringify(answer.body)}`,
    );
  }
}
