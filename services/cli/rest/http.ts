/** One REST request: JSON in, JSON out, every failure as a CommandError. */
import type { Static, TSchema } from 'typebox';
import { Value } from 'typebox/value';
import { CommandError, ExitCode } from '../errors.ts';
import { ErrorBody } from './schema.ts';

/** Attaching waits for the agent and its kernel; nothing the control plane does should take longer. */
const REQUEST_MS_MAX = 120_000;

export interface RestRequest {
  readonly method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  /** Path with query, from `/v1` on. */
  readonly path: string;
  readonly body?: unknown;
  /** Sent with a POST, so that the control plane can tell a repetition from a second request. */
  readonly idempotencyKey?: string;
  readonly timeoutMs?: number;
}

interface RestResponse {
  readonly status: number;
  readonly text: string;
}

/**
 * Sends a request and checks the answer against `schema`.
 * @throws CommandError with the server's own code (exit code 1), BW_PEER_UNREACHABLE (3), BW_TIMEOUT (1), or
 *   BW_PROTOCOL (1) when the answer is not what the schema says.
 */
export async function requestJson<Schema extends TSchema>(
  base: string,
  request: RestRequest,
  schema: Schema,
): Promise<Static<Schema>> {
  const { text } = await send(base, request);
  const body = parseJson(text);
  if (Value.Check(schema, body)) return body;
  const [first] = Value.Errors(schema, body);
  const where = first === undefined ? '' : ` (${first.instancePath || '/'} ${first.message})`;
  throw new CommandError(
    'BW_PROTOCOL',
    `${request.method} ${request.path}: unexpected answer${where}; is ${base} a Blockwire control plane of this version?`,
  );
}

/** Sends a request whose answer has no body of interest; throws as requestJson. */
export async function requestEmpty(base: string, request: RestRequest): Promise<void> {
  await send(base, request);
}

async function send(base: string, request: RestRequest): Promise<RestResponse> {
  const response = await exchange(base, request);
  if (response.status >= 200 && response.status < 300) return response;
  throw refusal(base, request, response);
}

function refusal(base: string, { method, path }: RestRequest, { status, text }: RestResponse): CommandError {
  const body = parseJson(text);
  if (Value.Check(ErrorBody, body)) return new CommandError(body.code, body.message);
  return new CommandError(
    'BW_PROTOCOL',
    `${method} ${path}: HTTP ${status} without a Blockwire error; is ${base} a control plane?`,
  );
}

async function received(response: Response): Promise<RestResponse> {
  return { status: response.status, text: await response.text() };
}

function unreachable(base: string, cause: unknown): CommandError {
  return new CommandError(
    'BW_PEER_UNREACHABLE',
    `no control plane at ${base} (${reasonOf(cause)}); start one with "blockwire up" or name it with --rest`,
    ExitCode.UNREACHABLE,
    { cause },
  );
}

async function exchange(base: string, request: RestRequest): Promise<RestResponse> {
  const { method, path, body, idempotencyKey, timeoutMs = REQUEST_MS_MAX } = request;
  const headers: Record<string, string> = { accept: 'application/json' };
  if (body !== undefined) headers['content-type'] = 'application/json';
  if (idempotencyKey !== undefined) headers['idempotency-key'] = idempotencyKey;
  try {
    const response = await fetch(new URL(path, base), {
      method,
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      signal: AbortSignal.timeout(timeoutMs),
      redirect: 'error',
    });
    return await received(response);
  } catch (error) {
    if (error instanceof DOMException && error.name === 'TimeoutError')
      throw new CommandError('BW_TIMEOUT', `${method} ${path}: no answer within ${timeoutMs / 1000} s`);
    throw unreachable(base, error);
  }
}

/** fetch reports every network failure as "fetch failed"; the reason is in its cause. */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error ? (error.cause ?? error) : error;
  if (cause instanceof Error && 'code' in cause && typeof cause.code === 'string') return cause.code;
  return cause instanceof Error ? cause.message : String(cause);
}

/**
 * An answer without an end, as text in the pieces it comes in. Throws as requestJson does; BW_PEER_UNREACHABLE also when it breaks
 * off or falls silent.
 */
export async function* openStream(
  base: string,
  path: string,
  options: { readonly headers: Readonly<Record<string, string>>; readonly silenceMsMax: number },
): AsyncGenerator<string> {
  const silence = new AbortController();
  const timer = setTimeout(() => silence.abort(new Error('it says nothing')), options.silenceMsMax);
  try {
    const response = await fetch(new URL(path, base), {
      headers: options.headers,
      signal: silence.signal,
      redirect: 'error',
    });
    if (!response.ok || response.body === null)
      throw refusal(base, { method: 'GET', path }, await received(response));
    for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
      timer.refresh();
      yield text;
    }
  } catch (error) {
    throw error instanceof CommandError ? error : unreachable(base, error);
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
