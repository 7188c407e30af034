/** client → nbdkit with its nbd plugin → node. */
import { existsSync } from 'node:fs';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { startDaemon } from '../bench/processes.ts';
import type { ServedNode } from './node.ts';

const START_MS_MAX = 10_000;

/** Starts the proxy for one volume; it ends with the test. Returns its URI. */
export async function startProxy(t: TestContext, served: ServedNode, volume: string): Promise<string> {
  const socket = served.path(`proxy-${volume}.sock`);
  const daemon = startDaemon(
    ['nbdkit', '--foreground', '--unix', socket, 'nbd', `uri=${served.uri(volume)}`, 'shared=false'],
    { netns: null },
  );
  t.after(() => daemon.kill());
  for (const until = Date.now() + START_MS_MAX; !existsSync(socket); await sleep(20)) {
    if (daemon.ended() !== null || Date.now() > until) throw new Error(`nbdkit: ${daemon.output()}`);
  }
  return `nbd+unix:///?socket=${socket}`;
}
