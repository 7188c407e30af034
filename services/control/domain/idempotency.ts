/**
 * Requests that are safe to repeat: the same Idempotency-Key with the same request answers what the first
 * one answered. Only successes are kept: a request that failed has left nothing, so the next one runs.
 */
import { createHash } from 'node:crypto';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { MetadataStore } from '../store/store.ts';
import { commitRound } from './commit.ts';
import type { Context } from './context.ts';
import { idempotency } from './records.ts';

const KEEP_MS = 24 * 3600 * 1000;

export type IdempotencyContext = Pick<Context, 'now' | 'newId'> & { readonly store: MetadataStore };

export interface IdempotentRequest<Body> {
  /** The client's Idempotency-Key. */
  readonly key: string;
  /** Everything that makes two requests the same: method, path, body. */
  readonly content: unknown;
  /** Prefix of the id of what the request makes. */
  readonly idPrefix: string;
  /** Does the work, making the resource under this id. */
  readonly run: (resourceId: string) => Promise<Body>;
  /** The answer for a resource that an earlier process made but did not live to answer; null if there is none. */
  readonly find: (resourceId: string) => Promise<Body | null>;
}

type Claim =
  | { readonly kind: 'run'; readonly resourceId: string }
  | { readonly kind: 'takeOver'; readonly resourceId: string; readonly orphanId: string }
  | { readonly kind: 'stored'; readonly text: string };

export interface OnceResult<Body> {
  readonly body: Body;
  /** True when an earlier request did the work. */
  readonly replayed: boolean;
}

export class Idempotency {
  readonly #context: IdempotencyContext;
  /** This process, in the records of the requests it runs. */
  readonly #owner: string;
  readonly #running = new Map<string, Promise<unknown>>();

  constructor(context: IdempotencyContext) {
    this.#context = context;
    this.#owner = context.newId('control');
  }

  /**
   * Runs the request once for its key. A second one waits for the first when it runs here.
   * Throws BW_IDEMPOTENCY_MISMATCH when the key came with another request, or what `run` throws.
   */
  async once<Body>(request: IdempotentRequest<Body>): Promise<OnceResult<Body>> {
    const keyDigest = digest(request.key);
    const requestDigest = digest(canonicalJson(request.content));
    for (;;) {
      const running = this.#running.get(keyDigest);
      if (running === undefined) break;
      // Its failure is its own caller's; we then try ourselves.
      await running.catch(() => {});
    }
    const work = this.#work(request, keyDigest, requestDigest);
    this.#running.set(keyDigest, work);
    try {
      return await work;
    } finally {
      this.#running.delete(keyDigest);
    }
  }

  /** Forgets answers older than a day. */
  async expire(): Promise<void> {
    const { store, now } = this.#context;
    const createdAtMin = new Date(now() - KEEP_MS).toISOString();
    for (const record of await store.list('idempotency/')) {
      const keyDigest = record.key.slice('idempotency/'.length);
      const found = await idempotency.get(store, keyDigest);
      if (found === null || found.value.createdAt >= createdAtMin || this.#running.has(keyDigest)) continue;
      await store.commit([idempotency.remove(keyDigest, found.version)]);
    }
  }

  async #work<Body>(
    request: IdempotentRequest<Body>,
    keyDigest: string,
    requestDigest: string,
  ): Promise<OnceResult<Body>> {
    const claim = await this.#claim(request.idPrefix, keyDigest, requestDigest);
    // The text is what this very kind of request answered: its digest covers method and path.
    if (claim.kind === 'stored') return { body: JSON.parse(claim.text) as Body, replayed: true };
    try {
      const found = claim.kind === 'takeOver' ? await request.find(claim.orphanId) : null;
      const body = found ?? (await request.run(claim.resourceId));
      await this.#finish(keyDigest, JSON.stringify(body));
      return { body, replayed: found !== null };
    } catch (error) {
      await this.#finish(keyDigest, null);
      throw error;
    }
  }

  #claim(idPrefix: string, keyDigest: string, requestDigest: string): Promise<Claim> {
    const { store, newId } = this.#context;
    const resourceId = newId(idPrefix);
    return commitRound<Claim>(store, async () => {
      const found = await idempotency.get(store, keyDigest);
      if (found !== null) {
        const { value } = found;
        if (value.requestDigest !== requestDigest) {
          throw new BlockwireError(
            'BW_IDEMPOTENCY_MISMATCH',
            'this Idempotency-Key came with another request before; use a new key for a new request',
          );
        }
        if (value.answer !== null) {
          return { changes: [], result: { kind: 'stored', text: value.answer } };
        }
      }
      const record = {
        requestDigest,
        resourceId,
        owner: this.#owner,
        answer: null,
        createdAt: new Date(this.#context.now()).toISOString(),
      };
      return {
        changes: [idempotency.replace(keyDigest, found?.version ?? 0, record)],
        result:
          found === null
            ? { kind: 'run', resourceId }
            : { kind: 'takeOver', resourceId, orphanId: found.value.resourceId },
      };
    });
  }

  async #finish(keyDigest: string, answer: string | null): Promise<void> {
    const { store } = this.#context;
    await commitRound(store, async () => {
      const found = await idempotency.get(store, keyDigest);
      if (found === null || found.value.owner !== this.#owner) return { changes: [], result: undefined };
      const change =
        answer === null
          ? idempotency.remove(keyDigest, found.version)
          : idempotency.replace(keyDigest, found.version, { ...found.value, answer });
      return { changes: [change], result: undefined };
    });
  }
}

/** JSON with the keys of every object in order, so that equal requests have equal text. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
