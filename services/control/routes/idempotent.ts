/** A POST route that honours the Idempotency-Key header. */
import type { IncomingHttpHeaders } from 'node:http';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Idempotency, IdempotentRequest } from '../domain/idempotency.ts';

const KEY_LENGTH_MAX = 255;
const PRINTABLE = /^[\x21-\x7e]+$/;

interface PostRequest {
  readonly headers: IncomingHttpHeaders;
  readonly method: string;
  readonly url: string;
  readonly body: unknown;
}

interface PostReply {
  header(name: string, value: string): unknown;
  code(status: number): unknown;
}

/**
 * Runs the work, once for its key if the client sent one; sets the reply's status and gives its body. A repeated
 * answer carries the header `idempotency-replayed: true`. Throws BW_INVALID_ARGUMENT for a key that is none.
 */
export async function answerOnce<Body>(
  parts: { readonly idempotency: Idempotency; readonly newId: (prefix: string) => string },
  http: { readonly request: PostRequest; readonly reply: PostReply },
  work: Pick<IdempotentRequest<Body>, 'idPrefix' | 'run' | 'find'>,
): Promise<Body> {
  const { request, reply } = http;
  reply.code(201);
  const key = request.headers['idempotency-key'];
  if (key === undefined) return work.run(parts.newId(work.idPrefix));
  if (typeof key !== 'string' || key.length > KEY_LENGTH_MAX || !PRINTABLE.test(key)) {
    throw new BlockwireError(
      'BW_INVALID_ARGUMENT',
      `Idempotency-Key must be 1 to ${KEY_LENGTH_MAX} printable characters`,
    );
  }
  const content = { method: request.method, path: request.url, body: request.body };
  const { body, replayed } = await parts.idempotency.once({ key, content, ...work });
  if (replayed) reply.header('idempotency-replayed', 'true');
  return body;
}
