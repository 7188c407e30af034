/** The HTTP edge that every process has: `/healthz` (200 or 503 with reasons) and `/metrics` (Prometheus text). */
import { createServer, type Server } from 'node:http';
import { collectDefaultMetrics, Registry } from 'prom-client';

/** A registry with the process's own metrics (CPU, heap, event loop, garbage collection). */
export function createRegistry(): Registry {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  return registry;
}

export interface HealthReport {
  readonly healthy: boolean;
  /** One entry a part: `ok` or what is wrong with it. */
  readonly parts: Readonly<Record<string, string>>;
}

export interface ObservabilityOptions {
  readonly host: string;
  /** 0 takes any free port. */
  readonly port: number;
  readonly registry: Registry;
  readonly health: () => HealthReport;
}

/** Starts the server; resolves when it listens. Rejects with the system's error when the port is taken. */
export async function serveObservability(options: ObservabilityOptions): Promise<Server> {
  const { host, port, registry, health } = options;
  const server = createServer((request, response) => {
    const answer = (status: number, type: string, body: string): void => {
      response.writeHead(status, { 'content-type': type }).end(body);
    };
    const path = request.url?.split('?')[0];
    if (path === '/healthz') {
      const report = health();
      answer(report.healthy ? 200 : 503, 'application/json', JSON.stringify(report));
    } else if (path === '/metrics') {
      registry.metrics().then(
        (text) => answer(200, registry.contentType, text),
        (error: unknown) => answer(500, 'text/plain', String(error)),
      );
    } else {
      answer(
        404,
        'application/json',
        JSON.stringify({ code: 'BW_NOT_FOUND', message: 'try /healthz or /metrics' }),
      );
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, resolve);
  });
  return server;
}
