/** A program for tests: ends by process.exit(7) while its worker is blocked in the kernel. */
import { RingWorker } from '../worker-loop.ts';

new RingWorker({
  module: new URL('./echo-worker.ts', import.meta.url),
  name: 'echo',
  data: { greeting: 'hello' },
  onMessage: () => process.exit(7),
  onExit: (error) => {
    if (error !== null) throw error;
  },
});
