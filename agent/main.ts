/**
 * The agent: config → what the kernel offers → attachments ⇄ control plane, and /metrics beside them. Payload never
 * passes here: it stays in the queue workers (datapath/).
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { Lifecycle } from '@blockwire/shared/lifecycle.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { createRegistry, serveObservability } from '@blockwire/shared/observability.ts';
import { Attachments } from './attachments.ts';
import { type AgentConfig, parseConfig } from './config.ts';
import { ControlLink } from './control-link.ts';
import { probeHost } from './datapath/probe.ts';
import { askForHandover, lockAgent, runFiles, serveHandover } from './handover.ts';
import { holdMemory } from './memory-hold.ts';
import { registerAgentMetrics } from './metrics.ts';
import { listLeftovers } from './takeover.ts';

/** How long an old process may take to be gone: killed with much in flight, or after it made way. */
const OLD_PROCESS_MS_MAX = 15_000;
const HANDOVER_MS_MAX = 60_000;
/** Devices that take longer than this are taken over while the agent serves the others. */
const TAKEOVER_MS_MAX = 30_000;

async function main(config: AgentConfig): Promise<void> {
  const log = createLogger('agent');
  holdMemory(log);
  const lifecycle = new Lifecycle(log);
  lifecycle.exitOnSignals();

  const probe = await probeHost();
  const datapaths = probe.modes.filter(({ available }) => available).map(({ mode }) => mode);
  log.info({ datapaths, modes: probe.modes }, 'data paths of this host');

  const control = new ControlLink({ log, agentId: config.id, control: config.control, datapaths });
  const attachments = new Attachments({
    log,
    config,
    probe,
    reportLost: (report) => control.reportLost(report),
    resume: (attachmentId) => control.resume(attachmentId),
    // The devices stay with the kernel; the next process takes them over.
    onFatal: () => process.exit(1),
  });

  // Everything above works: now the old process may go.
  const files = runFiles(config.runDir, config.id);
  const heldAtMs = config.handover ? await askForHandover(files, HANDOVER_MS_MAX) : null;
  await lockAgent(files, config.id, OLD_PROCESS_MS_MAX);
  const takingOver = attachments.takeOver(await listLeftovers(config.id), heldAtMs ?? new Map());

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
  const closeMetrics = (): void => {
    server.closeAllConnections();
    server.close();
  };
  const socket = await serveHandover(files, {
    log,
    release: async () => {
      await control.leave();
      closeMetrics();
      return attachments.release();
    },
    end: () => void lifecycle.stop().then((code) => process.exit(code)),
  });
  lifecycle.onStop('metrics', closeMetrics);
  lifecycle.onStop('control', () => control.stop());
  lifecycle.onStop('attachments', () => attachments.close());
  lifecycle.onStop('socket', () => void socket.close());

  await control.start(attachments);
  const takenOver = await Promise.race([takingOver, sleep(TAKEOVER_MS_MAX, [], { ref: false })]);
  log.info({ id: config.id, control: config.control, takenOver }, 'ready');
  if (config.json) {
    const address = server.address();
    const port = typeof address === 'object' && address !== null ? address.port : config.metricsPort;
    const metrics = `http://${config.metricsHost}:${port}/metrics`;
    process.stdout.write(`${JSON.stringify({ id: config.id, datapaths, takenOver, metrics })}\n`);
  } else {
    for (const { device, pauseMs } of takenOver)
      process.stdout.write(`${device} taken over${pauseMs === null ? '' : `, paused for ${pauseMs} ms`}\n`);
  }
}

try {
  await main(parseConfig(process.argv.slice(2)));
} catch (thrown) {
  const { code, message } = toBlockwireError(thrown);
  process.stderr.write(`blockwire agent: ${code}: ${message}\n`);
  process.exitCode = code === 'BW_INVALID_ARGUMENT' ? 2 : 1;
}
