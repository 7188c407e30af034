/**
 * The thread of one ublk queue: kernel → UblkQueue → Mirror → replica links → Mirror → UblkQueue → kernel; and the main
 * thread's orders (queue-orders.ts).
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { allocateRegion, PAGE_SIZE_BYTES } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import { PollWindow } from '@blockwire/native/poll-window.ts';
import { openWorkerLoop } from '@blockwire/native/worker-loop.ts';
import { Agreement } from './agreement.ts';
import { CounterIndex, openCounters, openLatency } from './counters.ts';
import { DEVICE_LATENCY, LatencyRecorder, replicaLatency } from './latency.ts';
import { MarkRows } from './mark-rows.ts';
import type { FromWorker, QueueWorkerData, ToWorker } from './messages.ts';
import { type Fence, Mirror, type MirrorHost } from './mirror.ts';
import { Payload } from './payload.ts';
import { QueueOrders } from './queue-orders.ts';
import { SharedRanges } from './ranges.ts';
import { NbdReplicaLink } from './replica-link.ts';
import { RequestTable } from './request.ts';
import { SpliceTransmitter } from './splice-transmit.ts';
import { CHAIN_REQUESTS_MAX, ChainTransmitter } from './transmit.ts';
import { type QueueBuffers, type QueueHost, UblkQueue } from './ublk-queue.ts';

// Room for a whole chain to each of several replicas before a submission is forced.
const RING_ENTRIES = 8 * CHAIN_REQUESTS_MAX;
/** Own memory of one queue; mode copy takes an I/O's largest size for each tag. */
const OWN_BYTES_MAX = 1 << 30;
/** Attempts to connect of one process and link; a new process has a higher generation. */
const ATTEMPTS_MAX = 1_000_000;
/** With more in flight than this sleeping gathers completions, which saves more than waking costs. */
const POLL_REQUESTS_MAX = 4;

const { loop, data } = openWorkerLoop({ entries: RING_ENTRIES, clock: true });
const setup = data as QueueWorkerData;
const { ring } = loop;
const depth = setup.queueDepth;
const requests = new RequestTable(depth);
const counters = openCounters(setup.counters);
const numbers = openLatency(setup.counters);
const latencyOf = (source: number): LatencyRecorder =>
  new LatencyRecorder({ numbers, source, clock: ring.clock, requests });
const say = (message: FromWorker): void => loop.post(message);

const { datapath, ladder } = setup;
const userCopies = datapath === 'splice' || (datapath === 'fused' && ladder.smallBytesMax > 0);
const ownBytesMax = datapath === 'fused' ? ladder.smallBytesMax : setup.ioSizeBytesMax;
const strideBytes = Math.ceil(ownBytesMax / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES;
if (depth * strideBytes > OWN_BYTES_MAX) {
  throw new RangeError(
    `${depth} requests of ${ownBytesMax} bytes need more than ${OWN_BYTES_MAX} bytes of memory a queue: lower the queue depth or the I/O size, or use the datapath fused`,
  );
}
const payload = new Payload({
  depth,
  // Most requests are small: pages come when they are needed.
  own: ownBytesMax > 0 ? allocateRegion(depth * strideBytes, false) : null,
  strideBytes,
  ownBytesMax,
  userCopy: userCopies ? { fd: setup.charFd, queueId: setup.queueId } : null,
});
const buffers: QueueBuffers =
  datapath === 'copy' ? 'mapped' : datapath === 'splice' ? 'none' : ladder.buffers;
// Each request's pages go into the slot of its tag.
if (datapath === 'fused') ring.registerSparseBuffers(depth);

let ending = false;
let releasing = false;

class Host implements MirrorHost, QueueHost {
  start(tag: number): void {
    mirror.start(tag);
  }

  complete(tag: number, result: number): void {
    queue.commit(tag, result);
  }

  reportLost(replica: number, reason: string): void {
    // Links that end with the device are no loss: a report would make a healthy replica stale.
    if (!ending) say({ type: 'lost', replica, reason });
  }

  fencePassed(fence: Fence): void {
    orders.fencePassed(fence);
  }

  readyToJoin(replica: number): void {
    orders.readyToJoin(replica);
  }

  ended(): void {
    ending = true;
    orders.end();
  }
}

const host = new Host();
const marks = new MarkRows(requests);
/** By slot; more come when a membership names them. */
const links: NbdReplicaLink[] = [];
function makeLink(replica: number): NbdReplicaLink {
  return new NbdReplicaLink({
    ring,
    requests,
    payload,
    ladder,
    counters,
    makeTransmit: (options) =>
      datapath === 'splice' ? new SpliceTransmitter(options) : new ChainTransmitter(options),
    replica,
    name: `${setup.deviceName}/${setup.queueId}`,
    attemptsBefore: setup.generation * ATTEMPTS_MAX,
    marks,
    sizeBytes: setup.sizeBytes,
    timeoutMs: setup.replicaTimeoutMs,
    latency: latencyOf(replicaLatency(replica)),
    onChange: (index, up, reason, refusal) => say({ type: 'link', replica: index, up, reason, refusal }),
  });
}

const { queueId, queueCount, wakeFds } = setup;
const ranges =
  queueCount === 1
    ? null
    : new SharedRanges({
        shared: setup.ranges,
        queueId,
        queueCount,
        queueDepth: depth,
        wake: (target) => native.eventfdSignal(wakeFds[target]!),
      });
const agreement = queueCount === 1 ? null : new Agreement(setup.agreement);
const mirror = new Mirror({ requests, links, host, inSync: 0, ranges, agreement });
const queue = new UblkQueue({
  ring,
  fd: setup.charFd,
  queueId,
  requests,
  payload,
  buffers,
  host,
  counters,
  latency: latencyOf(DEVICE_LATENCY),
});

function reportHeap(): void {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
  const requests = counters[CounterIndex.readOps]! + counters[CounterIndex.writeOps]!;
  say({ type: 'heap', usedBytes: process.memoryUsage().heapUsed, requests });
}

const orders = new QueueOrders({ mirror, links, makeLink, marks, say });

orders.obey(setup.membership);
queue.fetchAll();
ring.submit();
say({ type: 'fetched' });

loop.run({
  onMessage(message) {
    const order = message as ToWorker;
    if (order.type === 'release') releasing = true;
    else if (order.type === 'heap') reportHeap();
    else orders.obey(order);
  },
  onWake() {
    mirror.retryWaiting();
  },
  onBatchEnd() {
    queue.settle();
    for (const link of links) link.flush();
    counters[CounterIndex.enters] = ring.enterCount;
    counters[CounterIndex.sqes] = ring.submittedCount;
    counters[CounterIndex.failovers] = mirror.failoverCount;
    counters[CounterIndex.readErrors] = mirror.readErrorCount;
    counters[CounterIndex.retries] = mirror.retryCount;
    counters[CounterIndex.overlaps] = mirror.overlapCount;
    // Tags that were in flight when the device was quiesced are fetched again by their commit and never come back.
    if (releasing && !ending && mirror.activeCount === 0) host.ended();
    if (ending && links.every((link) => link.idle)) {
      queue.release();
      loop.stop();
    }
  },
  onTick(nowMs) {
    for (const link of links) link.tick(nowMs);
  },
  pollWindow: new PollWindow(setup.busyPollUsMax),
  mayPoll: () => mirror.activeCount <= POLL_REQUESTS_MAX,
  onPolled(found) {
    counters[CounterIndex.polls] = counters[CounterIndex.polls]! + 1;
    if (found) counters[CounterIndex.pollHits] = counters[CounterIndex.pollHits]! + 1;
  },
});
