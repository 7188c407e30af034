/** The REST server: Fastify, its validation, its one error handler, and the routes. */

import { readVersion } from '@blockwire/shared/version.ts';
import swagger from '@fastify/swagger';
import { type TypeBoxTypeProvider, TypeBoxValidatorCompiler } from '@fastify/type-provider-typebox';
import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  LogController,
  type RawReplyDefaultExpression,
  type RawRequestDefaultExpression,
  type RawServerDefault,
} from 'fastify';
import type { Registry } from 'prom-client';
import type { Attachments } from '../domain/attachments.ts';
import type { Context } from '../domain/context.ts';
import type { Idempotency } from '../domain/idempotency.ts';
import type { Rebuilder } from '../domain/rebuilds.ts';
import type { Scrubber } from '../domain/scrubs.ts';
import type { Snapshots } from '../domain/snapshots.ts';
import type { Volumes } from '../domain/volumes.ts';
import type { HttpMetrics } from '../metrics.ts';
import { attachmentRoutes } from './attachments.ts';
import { handleClientError, handleError, handleNotFound } from './errors.ts';
import { eventRoutes } from './events.ts';
import { nodeRoutes } from './nodes.ts';
import { snapshotRoutes } from './snapshots.ts';
import { systemRoutes } from './system.ts';
import { volumeRoutes } from './volumes.ts';

const BODY_BYTES_MAX = 64 * 1024;
const REQUEST_RECEIVE_MS_MAX = 30_000;

export type RestApp = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression,
  RawReplyDefaultExpression,
  FastifyBaseLogger,
  TypeBoxTypeProvider
>;

export interface ControlParts {
  readonly context: Context;
  readonly volumes: Volumes;
  readonly attachments: Attachments;
  readonly rebuilder: Rebuilder;
  readonly snapshots: Snapshots;
  readonly scrubber: Scrubber;
  readonly idempotency: Idempotency;
}

/** An app that is ready to listen or to be injected with requests. */
export async function buildApp(
  parts: ControlParts & { readonly registry: Registry; readonly httpMetrics: HttpMetrics },
): Promise<RestApp> {
  const app = Fastify({
    loggerInstance: parts.context.log as FastifyBaseLogger,
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: BODY_BYTES_MAX,
    requestTimeout: REQUEST_RECEIVE_MS_MAX,
    forceCloseConnections: 'idle',
    clientErrorHandler: handleClientError,
    frameworkErrors: handleError,
  })
    .withTypeProvider<TypeBoxTypeProvider>()
    // Validates without coercing a body and without dropping what the schema does not know.
    .setValidatorCompiler(TypeBoxValidatorCompiler)
    .setErrorHandler(handleError)
    .setNotFoundHandler(handleNotFound);

  app.addHook('onResponse', async (request, reply) => {
    // A stream takes as long as its reader stays.
    if (reply.getHeader('content-type') === 'text/event-stream') return;
    parts.httpMetrics.observe({
      method: request.method,
      route: request.routeOptions.url ?? 'unknown',
      status: reply.statusCode,
      seconds: reply.elapsedTime / 1000,
    });
  });
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Blockwire control plane', version: readVersion() },
    },
  });
  volumeRoutes(app, parts);
  snapshotRoutes(app, parts);
  attachmentRoutes(app, parts);
  nodeRoutes(app, parts);
  eventRoutes(app, parts);
  systemRoutes(app, parts);
  await app.ready();
  return app;
}
