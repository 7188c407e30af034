import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { after, before, test } from 'node:test';
import { processRequest } from './commands/run.ts';
import { ExitCode } from './errors.ts';
import { runCommandLine } from './program.ts';

const VOLUME = {
  id: 'vol-0123456789ab',
  name: 'data',
  sizeBytes: 1_073_741_824,
  state: 'inUse',
  degraded: true,
  replicas: [
    { node: 'node-1', state: 'inSync', uri: 'nbd://127.0.0.1:10809/vol-0123456789ab' },
    { node: 'node-2', state: 'stale', uri: 'nbd://127.0.0.1:10810/vol-0123456789ab' },
  ],
};
const ATTACHMENT = {
  id: 'att-0123456789ab',
  volume: VOLUME.id,
  agent: 'agent-1',
  device: '/dev/ublkb0',
  datapath: 'fused',
  state: 'attached',
};
const NODE = {
  id: 'node-1',
  state: 'online',
  nbd: '127.0.0.1:10809',
  zone: 'a',
  capacityBytes: 2 ** 40,
  freeBytes: 2 ** 39,
  version: '0.1.0',
};

const SNAPSHOT = {
  name: 'monday',
  state: 'ready',
  sizeBytes: 2 ** 30,
  replicas: [{ node: 'node-1', uri: 'nbd://127.0.0.1:10809/vol-0123456789ab%40monday' }],
  missing: ['node-2'],
  createdAt: '2030-01-01T00:00:00.000Z',
};
const REBUILT = {
  ...VOLUME,
  replicas: [
    VOLUME.replicas[0],
    {
      ...{ node: 'node-3', state: 'rebuilding', uri: 'nbd://127.0.0.1:10811/x', replaces: 'node-2' },
      rebuild: { copiedBytes: 2 ** 20, totalBytes: 3 * 2 ** 20 },
    },
  ],
};

const SCRUBBED = {
  ...{ ...VOLUME, id: 'vol-eeeeeeeeeeee' },
  scrub: {
    ...{ startedAt: '2030-01-01T00:00:00.000Z', finishedAt: '2030-01-01T00:01:00.000Z' },
    replicas: [
      { node: 'node-1', mismatchedRegions: 2, repairedRegions: 1, error: null },
      { node: 'node-2', mismatchedRegions: 0, repairedRegions: 0, error: 'the membership has changed' },
    ],
  },
};

const answers: Record<string, unknown> = {
  'POST /v1/volumes': VOLUME,
  'POST /v1/volumes/vol-0123456789ab/replicas/node-2/promote': VOLUME,
  'POST /v1/volumes/vol-0123456789ab/snapshots': SNAPSHOT,
  'GET /v1/volumes/vol-0123456789ab/snapshots': [SNAPSHOT],
  'DELETE /v1/volumes/vol-0123456789ab/snapshots/monday': '',
  'DELETE /v1/volumes/vol-0123456789ab?snapshots=delete': '',
  'GET /v1/volumes/vol-ffffffffffff': REBUILT,
  'GET /v1/volumes/vol-eeeeeeeeeeee': SCRUBBED,
  'POST /v1/volumes/vol-0123456789ab/scrub': {
    ...{ ...VOLUME, scrub: { ...SCRUBBED.scrub, finishedAt: null } },
  },
  'POST /v1/nodes/node-1/drain': { ...NODE, draining: true, replicas: 2 },
  'POST /v1/nodes/node-2/drain': { ...NODE, id: 'node-2', draining: true, replicas: 0 },
  'DELETE /v1/nodes/node-1/drain': { ...NODE, draining: false, replicas: 2 },
  'GET /v1/volumes': [VOLUME],
  'GET /v1/volumes?name=data': [VOLUME],
  'GET /v1/volumes?name=absent': [],
  'GET /v1/volumes/vol-0123456789ab': VOLUME,
  'GET /v1/attachments': [{ ...ATTACHMENT, id: 'att-ffffffffffff', volume: 'vol-ffffffffffff' }, ATTACHMENT],
  'POST /v1/attachments': { ...ATTACHMENT, io: 'waiting' },
  'PATCH /v1/volumes/vol-0123456789ab': { ...VOLUME, sizeBytes: 2 ** 31 },
  'DELETE /v1/attachments/att-0123456789ab?force=true': '',
  'GET /v1/nodes': [{ ...NODE, draining: false }],
};

const STALE = {
  ...{ id: 7, at: '2030-01-01T00:00:00.000Z', type: 'replica.stale', volume: VOLUME.id, node: 'node-2' },
  ...{ epoch: 4, reason: 'its node lost power' },
};

let server: Server;
let rest: string;
let requests: string[] = [];
let bodies: string[] = [];

before(async () => {
  server = createServer(async (request, response) => {
    const key = `${request.method} ${request.url}`;
    requests.push(key);
    bodies.push(await text(request));
    if (request.url === `/v1/events?volume=${VOLUME.id}`) {
      // What comes after the event is none: the end of a command that has no other.
      response.end(`id: 7\ndata: ${JSON.stringify(STALE)}\n\ndata: {}\n\n`);
      return;
    }
    const body = answers[key] ?? { code: 'BW_NOT_FOUND', message: key };
    response.writeHead(key in answers ? 200 : 404).end(JSON.stringify(body));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  rest = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

after(() => {
  server.closeAllConnections();
  server.close();
});

async function run(...argv: string[]): Promise<{ exitCode: ExitCode; stdout: string; stderr: string }> {
  let stdout = '';
  let stderr = '';
  requests = [];
  bodies = [];
  const exitCode = await runCommandLine(argv, {
    output: {
      stdout: (said) => {
        stdout += said;
      },
      stderr: (said) => {
        stderr += said;
      },
    },
    environment: { BLOCKWIRE_REST: rest },
  });
  return { exitCode, stdout, stderr };
}

test('a wrong command line is exit code 2, says why on stderr and asks no one', async () => {
  const wrong: [string[], RegExp][] = [
    [['nosuch'], /unknown command 'nosuch'/],
    [['events', '--after', 'noon'], /noon is not the id of an event/],
    [['volume', 'create', 'data'], /--size/],
    [['volume', 'create', 'data', '--size', '1GB'], /write 1GiB/],
    [['volume', 'create', 'data', '--size', '1GiB', '--replicas', '0'], /--replicas/],
    [['volume', 'create', '--size', '1GiB'], /name/],
    [['volume', 'list', '--bogus'], /unknown option '--bogus'/],
    [['volume', 'list', 'more'], /too many arguments/],
    [['volume', 'attach', 'data', '--datapath', 'warp'], /auto, fused, splice, copy/],
    [['volume', 'attach', 'data', '--queues', 'all'], /--queues/],
    [['volume', 'attach', 'data', '--block-size', '1024'], /512, 4096/],
    [['volume', 'attach', 'data', '--io-timeout', '5s'], /--io-timeout/],
    [['volume', 'resize', 'data'], /--size/],
    [['volume', 'promote', 'data', 'node-2'], /--accept-loss/],
    [['volume', 'clone', 'data', 'monday', 'copy', '--size', '1GB'], /write 1GiB/],
    [['node', 'drain', 'node-1', '--undo', '--wait'], /nothing to wait for/],
    [['--rest', 'nowhere', 'volume', 'list'], /not a REST address/],
    [['--json', 'node', '--id', 'x'], /no option before "node"/],
    [['up', '--nodes', '0'], /--nodes/],
    [['up', '--rest-port', '65536'], /--rest-port/],
  ];
  for (const [argv, message] of wrong) {
    const { exitCode, stdout, stderr } = await run(...argv);
    assert.equal(exitCode, ExitCode.USAGE, argv.join(' '));
    assert.match(stderr, /^blockwire: BW_INVALID_ARGUMENT: /);
    assert.match(stderr, message);
    assert.equal(stdout, '');
    assert.deepEqual(requests, []);
  }
});

test('help is an answer: stdout, exit code 0', async () => {
  const { exitCode, stdout, stderr } = await run('volume', '--help');
  assert.equal(exitCode, ExitCode.OK);
  assert.match(stdout, /Usage: blockwire volume/);
  assert.equal(stderr, '');
});

test('a table for people, the server’s own document for scripts, --json before or after', async () => {
  const table = await run('volume', 'list');
  assert.match(table.stdout, /^NAME +ID +SIZE +STATE +REPLICAS$/m);
  assert.match(
    table.stdout,
    /^data +vol-0123456789ab +1 GiB +inUse \(degraded\) +node-1, node-2 \(stale\)$/m,
  );
  for (const argv of [
    ['--json', 'volume', 'list'],
    ['volume', 'list', '--json'],
  ]) {
    const { stdout } = await run(...argv);
    assert.equal(stdout.indexOf('\n'), stdout.length - 1);
    assert.deepEqual(JSON.parse(stdout), [VOLUME]);
  }
});

test('show names replicas with their addresses, and where the volume is attached', async () => {
  const { stdout } = await run('volume', 'show', 'data');
  assert.match(stdout, /^replica +node-1 inSync nbd:\/\/127\.0\.0\.1:10809\/vol-0123456789ab$/m);
  assert.match(stdout, /^attached +agent-1 \/dev\/ublkb0 fused attached$/m);
});

test('attach prints the device', async () => {
  const { exitCode, stdout } = await run('volume', 'attach', VOLUME.id);
  assert.equal(exitCode, ExitCode.OK);
  assert.match(stdout, /^device +\/dev\/ublkb0$/m);
});

test('attach asks for what was asked for, and for nothing else', async () => {
  await run('volume', 'attach', VOLUME.id);
  assert.deepEqual(JSON.parse(bodies.at(-1)!), { volume: VOLUME.id, datapath: 'auto' });
  const options = ['--queues', '4', '--queue-depth', '256', '--block-size', '4096', '--read-only'];
  const { stdout } = await run('volume', 'attach', VOLUME.id, ...options, '--io-timeout', '5000');
  assert.deepEqual(JSON.parse(bodies.at(-1)!), {
    ...{ volume: VOLUME.id, datapath: 'auto', queues: 4, queueDepth: 256 },
    ...{ blockSizeBytes: 4096, readOnly: true, ioTimeoutMs: 5000 },
  });
  assert.match(stdout, /^I\/O +waiting$/m);
});

test('show says how far a rebuild is, and whose place the replica takes', async () => {
  const { stdout } = await run('volume', 'show', 'vol-ffffffffffff');
  assert.match(stdout, /^replica +node-3 rebuilding 33% \(1 MiB of 3 MiB\) \(instead of node-2\) nbd:/m);
});

test('a scrub is begun, and its result shown', async () => {
  const begun = await run('volume', 'scrub', 'data');
  assert.match(begun.stdout, /^scrubbed +since 2030-01-01T00:00:00.000Z$/m);
  const { stdout } = await run('volume', 'show', 'vol-eeeeeeeeeeee');
  assert.match(stdout, /^scrubbed .*2 regions amiss, 1 repaired; not all compared: node-2: the membership/m);
});

test('attach by force says so', async () => {
  await run('volume', 'attach', VOLUME.id, '--force');
  assert.deepEqual(JSON.parse(bodies.at(-1)!), { volume: VOLUME.id, datapath: 'auto', force: true });
});

test('promote accepts the loss in so many words', async () => {
  const { exitCode } = await run('volume', 'promote', 'data', 'node-2', '--accept-loss');
  assert.equal(exitCode, ExitCode.OK);
  assert.equal(requests.at(-1), 'POST /v1/volumes/vol-0123456789ab/replicas/node-2/promote');
  assert.deepEqual(JSON.parse(bodies.at(-1)!), { acceptLoss: true });
});

test('a snapshot is taken, listed, cloned and deleted', async () => {
  const taken = await run('volume', 'snapshot', 'data', 'monday');
  assert.match(taken.stdout, /^replica +node-1 nbd:/m);
  assert.match(taken.stdout, /^missing +node-2 was not in sync$/m);
  assert.deepEqual(JSON.parse(bodies.at(-1)!), { name: 'monday' });
  const table = await run('volume', 'snapshots', 'data');
  assert.match(table.stdout, /^monday +ready +1 GiB +node-1 +node-2 +2030-01-01T00:00:00.000Z$/m);
  await run('volume', 'clone', 'data', 'monday', 'copy', '--size', '2GiB', '--replicas', '1');
  assert.equal(requests.at(-1), 'POST /v1/volumes');
  assert.deepEqual(JSON.parse(bodies.at(-1)!), {
    ...{ name: 'copy', sizeBytes: 2 ** 31, replicas: 1 },
    source: { volume: VOLUME.id, snapshot: 'monday' },
  });
  const gone = await run('volume', 'snapshot', 'data', 'monday', '--delete', '--json');
  assert.deepEqual(JSON.parse(gone.stdout), { volume: VOLUME.id, deleted: 'monday' });
  assert.equal((await run('volume', 'delete', 'data', '--snapshots')).exitCode, ExitCode.OK);
});

test('node drain says what is left, and waits when asked to', async () => {
  assert.equal((await run('node', 'drain', 'node-1')).stdout, 'node-1 is draining, 2 replicas left\n');
  assert.equal((await run('node', 'drain', 'node-2', '--wait')).stdout, 'node-2 is empty\n');
  assert.equal((await run('node', 'drain', 'node-1', '--undo')).stdout, 'node-1 keeps its replicas\n');
  // The list says that nobody drains it any more.
  const waited = await run('node', 'drain', 'node-1', '--wait');
  assert.match(waited.stderr, /2 replicas left/);
  assert.equal(processRequest(['node', 'drain', 'node-1']), null);
});

test('resize sends the new size and shows the volume', async () => {
  const { exitCode, stdout } = await run('volume', 'resize', 'data', '--size', '2GiB');
  assert.equal(exitCode, ExitCode.OK);
  assert.equal(requests.at(-1), 'PATCH /v1/volumes/vol-0123456789ab');
  assert.deepEqual(JSON.parse(bodies.at(-1)!), { sizeBytes: 2 ** 31 });
  assert.match(stdout, /^size +2 GiB$/m);
});

test('detach finds the attachment by the volume’s name', async () => {
  const { exitCode } = await run('volume', 'detach', 'data', '--force');
  assert.equal(exitCode, ExitCode.OK);
  assert.equal(requests.at(-1), 'DELETE /v1/attachments/att-0123456789ab?force=true');
});

test('events of a volume by its name, a line each', async () => {
  const { exitCode, stdout, stderr } = await run('events', '--volume', 'data');
  assert.deepEqual([exitCode, requests.at(-1)], [ExitCode.FAILED, `GET /v1/events?volume=${VOLUME.id}`]);
  assert.match(
    stdout,
    /^2030-01-01T00:00:00.000Z +7 +replica.stale +volume=vol-0123456789ab node=node-2 epoch=4 reason="its node lost power"\n$/,
  );
  assert.match(stderr, /^blockwire: BW_PROTOCOL: not an event/);
  const json = await run('events', '--volume', VOLUME.id, '--after', '6', '--json');
  assert.deepEqual([JSON.parse(json.stdout), requests], [STALE, [`GET /v1/events?volume=${VOLUME.id}`]]);
});

test('an unknown volume is exit code 1 with its code', async () => {
  const { exitCode, stdout, stderr } = await run('volume', 'delete', 'absent', '--json');
  assert.equal(exitCode, ExitCode.FAILED);
  assert.match(stderr, /^blockwire: BW_VOLUME_NOT_FOUND: /);
  assert.equal(stdout, '');
});

test('no control plane is exit code 3', async () => {
  const { exitCode, stderr } = await run('--rest', 'http://127.0.0.1:1', 'node', 'list');
  assert.equal(exitCode, ExitCode.UNREACHABLE);
  assert.match(stderr, /^blockwire: BW_PEER_UNREACHABLE: /);
});

test('node list lists, any other first argument belongs to the node process', async () => {
  assert.match(
    (await run('node', 'list')).stdout,
    /^node-1 +online +127\.0\.0\.1:10809 +a +1 TiB +512 GiB +0\.1\.0$/m,
  );
  assert.equal(processRequest(['node', 'list']), null);
  assert.equal(processRequest(['agent', 'list', '--json']), null);
  assert.deepEqual(processRequest(['node', '--id', 'list']), { role: 'node', args: ['--id', 'list'] });
  assert.deepEqual(processRequest(['control', '--json']), { role: 'control', args: ['--json'] });
  assert.deepEqual(processRequest(['node', 'check', 'd', '--json']), {
    role: 'nodeCheck',
    args: ['d', '--json'],
  });
  assert.deepEqual(processRequest(['agent']), { role: 'agent', args: [] });
  assert.deepEqual(processRequest(['agent', 'handover', '--id', 'a']), {
    role: 'agent',
    args: ['--handover', '--id', 'a'],
  });
  assert.deepEqual(processRequest(['agent', 'orphans', '--remove']), { role: 'orphans', args: ['--remove'] });
  assert.equal(processRequest(['volume', 'list']), null);
});
