/** /healthz, /metrics and /openapi.json. */
import type { HealthReport } from '@blockwire/shared/observability.ts';
import type { Registry } from 'prom-client';
import type { ControlParts, RestApp } from './app.ts';

export function systemRoutes(app: RestApp, parts: ControlParts & { readonly registry: Registry }): void {
  const { context, registry } = parts;
  const hidden = { schema: { hide: true } };

  app.get('/healthz', hidden, async (_request, reply) => {
    const store = await context.store.get('node/probe').then(
      () => 'ok',
      (error: unknown) => String(error),
    );
    const report: HealthReport = { healthy: store === 'ok', parts: { store } };
    return reply.code(report.healthy ? 200 : 503).send(report);
  });

  app.get('/metrics', hidden, async (_request, reply) =>
    reply.type(registry.contentType).send(await registry.metrics()),
  );

  app.get('/openapi.json', hidden, async () => app.swagger());
}
