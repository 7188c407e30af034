/**
 * The agent: config → what the kernel offers → attachments ⇄ control plane, and /metrics beside them. Payload never
 * passes here: it stays in the queue workers (datapath/).
 */
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { Lifecycle } from '@blockwire/shared/lifecycle.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { createRegistry, serveObservability } from '@blockwire/shared/observability.ts';
import { Attachments } from './attachments.ts';
import { type AgentConfig, parseConfig } from './config.ts';
import { ControlLink } from './control-link.ts';
import { probeHost } from './datapath/probe.ts';
import { registerAgentMetrics } from './metrics.ts';

async function main(config: AgentConfig): Promise<void> {
  const log = createLogger('agent');
  const lifecycle = new Lifecycle(log);
  lifecycle.exitOnSignals();

  const probe = await probeHost();
  const datapaths = probe.modes.filter(({ available }) => available).map(({ mode }) => mode);
  log.info({ datapaths, modes: probe.modes }, 'data paths of this host');

  const control = new ControlLink({ log, agentId: config.id, control: config.control, datapaths });
  const attachments = new Attachments({
    log,
    config,
    probe: probeHost,
    reportLost: (report) => control.reportLost(report),
  });

  const registry = createRegistry();
  registerAgentMetrics(registry, () => attachments.devices);
  const server = await serveObservability({
    host: config.metricsHost,
    port: config.metricsPort,
    registry,
    health: () => ({
      healthy: control.connected,
      parts: { control: control.connected ? 'ok' : `no answer from ${config.control}` },
    }),
  });
  lifecycle.onStop('metrics', () => {
    server.closeAllConnections();
    server.close();
  });
  lifecycle.onStop('control', () => control.stop());
  lifecycle.onStop('attachments', () => attachments.close());

  await control.start(attachments);
  log.info({ id: config.id, control: config.control }, 'ready');
  if (config.json) {
    const address = server.address();
    const port = typeof address === 'object' && address !== null ? address.port : config.metricsPort;
    const ready = { id: config.id, datapaths, metrics: `http://${config.metricsHost}:${port}/metrics` };
    process.stdout.write(`${JSON.stringify(ready)}\n`);
  }
}

try {
  await main(parseConfig(process.argv.slice(2)));
} catch (thrown) {
  const { code, message } = toBlockwireError(thrown);
  process.stderr.write(`blockwire agent: ${code}: ${message}\n`);
  process.exitCode = code === 'BW_INVALID_ARGUMENT' ? 2 : 1;
}
