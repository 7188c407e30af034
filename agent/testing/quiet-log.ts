/** A logger for tests of what is not said. */
import { createLogger, type Logger } from '@blockwire/shared/log.ts';

export function quietLog(): Logger {
  const log = createLogger('test');
  log.level = 'silent';
  return log;
}
