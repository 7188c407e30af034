/** The REST edge's one error handler: whatever fails leaves as `{code, message, details?}`. */
import type { Socket } from 'node:net';
import { BlockwireError, type ErrorCode, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';

/** Request errors that Fastify finds itself and whose code is not plainly BW_INVALID_ARGUMENT. */
const FASTIFY_CODES: Readonly<Record<string, ErrorCode>> = {
  FST_ERR_CTP_BODY_TOO_LARGE: 'BW_BODY_TOO_LARGE',
};

export function errorBody(error: BlockwireError): { code: string; message: string; details?: unknown } {
  const { code, message, details } = error;
  return details === null ? { code, message } : { code, message, details };
}

export function handleError(thrown: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const error = classify(thrown, request);
  if (error.code === 'BW_INTERNAL') request.log.error({ err: thrown }, 'a request failed');
  void reply.code(error.httpStatus).send(errorBody(error));
}

export function handleNotFound(request: FastifyRequest, reply: FastifyReply): void {
  const message = `there is no ${request.method} ${request.url.split('?')[0]}; see /openapi.json`;
  void reply.code(404).send({ code: 'BW_NOT_FOUND', message });
}

/** Bytes that are no HTTP request never reach a route; they get the same kind of answer. */
export function handleClientError(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const body = JSON.stringify({
    code: 'BW_INVALID_ARGUMENT',
    message: `not an HTTP request: ${error.message}`,
  });
  socket.end(
    'HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json; charset=utf-8\r\n' +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

function classify(thrown: unknown, request: FastifyRequest): BlockwireError {
  if (thrown instanceof BlockwireError || !(thrown instanceof Error)) return toBlockwireError(thrown);
  const { code, validation, validationContext, statusCode } = thrown as Partial<FastifyError>;
  if (validation) return invalid(validation, validationContext ?? 'request', request, thrown);
  const known = FASTIFY_CODES[code ?? ''];
  if (known !== undefined) return new BlockwireError(known, thrown.message, { cause: thrown });
  const isClients = statusCode !== undefined && statusCode >= 400 && statusCode < 500;
  if (isClients) return new BlockwireError('BW_INVALID_ARGUMENT', thrown.message, { cause: thrown });
  return new BlockwireError('BW_INTERNAL', 'the control plane failed; its log says why', { cause: thrown });
}

/** Names each field that is wrong, with its rule from the schema's description. */
function invalid(
  failures: NonNullable<FastifyError['validation']>,
  part: string,
  request: FastifyRequest,
  cause: Error,
): BlockwireError {
  const rules = descriptions(part === 'body' ? request.routeOptions.schema?.body : undefined);
  const texts = failures.map(({ instancePath, message, params }) => {
    const field = instancePath.slice(1);
    const rule = rules[field];
    if (rule !== undefined) return `${field} must be ${rule}`;
    return `${field || part} ${message ?? 'is not valid'}${unknownNames(params)}`;
  });
  const fields = failures.map(({ instancePath }) => instancePath.slice(1)).filter((field) => field !== '');
  return new BlockwireError('BW_INVALID_ARGUMENT', [...new Set(texts)].join('; '), {
    cause,
    details: { part, fields: [...new Set(fields)] },
  });
}

function unknownNames(params: { additionalProperties?: unknown; requiredProperties?: unknown }): string {
  const names = params.additionalProperties ?? params.requiredProperties;
  return Array.isArray(names) ? ` (${names.join(', ')})` : '';
}

function descriptions(schema: unknown): Record<string, string> {
  const found: Record<string, string> = {};
  if (typeof schema !== 'object' || schema === null || !('properties' in schema)) return found;
  for (const [name, property] of Object.entries(schema.properties ?? {})) {
    const { description } = property as { description?: string };
    if (description !== undefined) found[name] = description;
  }
  return found;
}
