/**
 * Attaches NBD exports as one mirrored ublk device without a control plane, for benchmarks and tests against any NBD server:
 *
 *   node test/tools/attach.ts --size BYTES --datapath fused --replica host:port/export [--replica …]
 *
 * `--send zc|plain`, `--zero-copy-min BYTES`, `--receive recv|readFixed`, `--buffers auto|manual` and `--small BYTES` force rungs of
 * the ladder, `--busy-poll US` how long a queue polls. Prints the device's path when it is ready; removes it on SIGTERM. A lost replica is out for good. Each line on standard
 * input is answered with the counters as one line of JSON.
 */
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { BUSY_POLL_US_DEFAULT } from '@blockwire/agent/config.ts';
import { COUNTERS } from '@blockwire/agent/datapath/counters.ts';
import { chooseLadder } from '@blockwire/agent/datapath/ladder.ts';
import type { DatapathLadder } from '@blockwire/agent/datapath/messages.ts';
import { chooseDatapath, probeHost } from '@blockwire/agent/datapath/probe.ts';
import { BlockDevice } from '@blockwire/agent/device.ts';
import type { Membership } from '@blockwire/proto/control/types.ts';
import { createLogger } from '@blockwire/shared/log.ts';

const { values } = parseArgs({
  options: {
    size: { type: 'string' },
    datapath: { type: 'string', default: 'auto' },
    depth: { type: 'string', default: '128' },
    queues: { type: 'string', default: '1' },
    'block-size': { type: 'string', default: '512' },
    'read-only': { type: 'boolean', default: false },
    send: { type: 'string' },
    'zero-copy-min': { type: 'string' },
    receive: { type: 'string' },
    buffers: { type: 'string' },
    small: { type: 'string' },
    'busy-poll': { type: 'string', default: String(BUSY_POLL_US_DEFAULT) },
    'io-size': { type: 'string', default: '1048576' },
    replica: { type: 'string', multiple: true },
  },
});

/** The rungs that were asked for. */
function askedLadder(): Partial<DatapathLadder> {
  const { send, receive, buffers, small } = values;
  const zeroCopyMin = values['zero-copy-min'];
  return {
    ...(send === 'zc' || send === 'plain' ? { send } : {}),
    ...(receive === 'recv' || receive === 'readFixed' ? { receive } : {}),
    ...(buffers === 'auto' || buffers === 'manual' ? { buffers } : {}),
    ...(small === undefined ? {} : { smallBytesMax: Number(small) }),
    ...(zeroCopyMin === undefined ? {} : { zeroCopyBytesMin: Number(zeroCopyMin) }),
  };
}

let membership: Membership = {
  volumeId: 'vol-static',
  generation: 1,
  epoch: 1,
  lossEpoch: 0,
  replicas: (values.replica ?? []).map((text, index) => {
    const [nbdAddress = '', exportName = ''] = text.split('/');
    return {
      nodeId: `static-${index}`,
      nbdAddress,
      exportName,
      state: 'REPLICA_STATE_IN_SYNC',
      joinedEpoch: 1,
    };
  }),
};

const probe = await probeHost();
const device = await BlockDevice.create({
  log: createLogger('attach'),
  agentId: 'static',
  attachmentId: 'att-static',
  volumeName: 'static',
  membership,
  sizeBytes: Number(values.size),
  datapath: chooseDatapath(probe, values.datapath),
  ladder: chooseLadder(probe, askedLadder()),
  queueCount: Number(values.queues),
  queueDepth: Number(values.depth),
  blockSizeBytes: Number(values['block-size']),
  readOnly: values['read-only'],
  ioTimeoutMs: 0,
  onFatal: () => process.exit(1),
  ioSizeBytesMax: Number(values['io-size']),
  replicaTimeoutMs: 30_000,
  busyPollUsMax: Number(values['busy-poll']),
  reportLost: ({ nodeId }) => {
    membership = {
      ...membership,
      epoch: membership.epoch + 1,
      replicas: membership.replicas.map((replica) =>
        replica.nodeId === nodeId ? { ...replica, state: 'REPLICA_STATE_STALE' } : replica,
      ),
    };
    return Promise.resolve(membership);
  },
});
process.stdout.write(`${device.path}\n`);

createInterface({ input: process.stdin }).on('line', () => {
  const values = device.io.counters;
  const counters = Object.fromEntries(COUNTERS.map((name, index) => [name, values[index]]));
  process.stdout.write(`${JSON.stringify({ counters })}\n`);
});

process.once('SIGTERM', () => {
  device.detach(true).then(
    () => process.exit(0),
    (error: unknown) => {
      process.stderr.write(`${String(error)}\n`);
      process.exit(1);
    },
  );
});
