/** Structured logs: one JSON object a line on stderr, so that stdout stays free for a command's answer. */
import { destination, type Logger, pino } from 'pino';

export type { Logger } from 'pino';

/** @param name the process's role: control, node, agent. Level comes from BLOCKWIRE_LOG (default info). */
export function createLogger(name: string): Logger {
  return pino(
    {
      name,
      level: process.env.BLOCKWIRE_LOG ?? 'info',
      base: { name },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
    },
    destination({ fd: 2, sync: true }),
  );
}
