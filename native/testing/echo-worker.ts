/** A worker for tests: says the greeting it was given, then answers every message with itself. */
import { openWorkerLoop } from '../worker-loop.ts';

const { loop, data } = openWorkerLoop({ entries: 8 });
loop.post((data as { greeting: string }).greeting);
loop.run({
  onMessage(message) {
    if (message === 'stop') loop.stop();
    else if (message === 'throw') throw new Error('failed as asked');
    else loop.post(message);
  },
});
