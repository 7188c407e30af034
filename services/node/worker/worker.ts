/** Entry of a data worker's thread: memory, ring, server, loop. */
import { allocateRegion } from '@blockwire/native/memory.ts';
import { openWorkerLoop } from '@blockwire/native/worker-loop.ts';
import type { FromWorker, ToWorker, WorkerSettings } from '../data/messages.ts';
import { Stat } from '../data/stats.ts';
import { connectionPoolBytes } from './connection-table.ts';
import { HeapSampler } from './heap-sampler.ts';
import { RingIo } from './ring-io.ts';
import { NodeServer } from './server.ts';

const HEAP_SAMPLE_MS = 1000;

const { loop, data } = openWorkerLoop({ entries: 1024, clock: true });
const settings = data as WorkerSettings;
const memoryBytes = settings.poolBytes + connectionPoolBytes(settings.connectionsMax);
const io = new RingIo(loop.ring, allocateRegion(memoryBytes));
const stats = new Float64Array(settings.stats);
const post = (message: FromWorker): void => loop.post(message);
const server = new NodeServer({ settings, io, post, onStopped: () => loop.stop() });
const heap = new HeapSampler(stats);
let heapSampledMs = 0;
server.start();
post({ type: 'ready', registeredMemory: io.registered });
loop.run({
  onMessage: (message) => server.onMessage(message as ToWorker),
  onBatchEnd: () => {
    server.onBatchEnd();
    stats[Stat.enters] = loop.ring.enterCount;
  },
  waitUsMax: () => server.waitUsMax,
  onTick: (nowMs) => {
    server.onTick(nowMs);
    if (nowMs - heapSampledMs < HEAP_SAMPLE_MS) return;
    heapSampledMs = nowMs;
    heap.sample();
  },
});
