/** Checksums, region maps, block status, snapshots, resize and the check command, with real nodes, files and clients. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { addNodesService } from '@blockwire/proto/control/service.ts';
import type { NodeCommandInput, NodeCommandResult, NodesHandlers } from '@blockwire/proto/control/types.ts';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { openExport } from './testing/nbd-client.ts';
import { eventually, type NodeProcess, run, startNode, temporaryDirectory } from './testing/node-process.ts';

const MIB = 2 ** 20;
const CHECK = new URL('./check.ts', import.meta.url).pathname;

interface Report {
  readonly clean: boolean;
  readonly findings: readonly { replica: string; severity: string; what: string }[];
}

async function check(
  directory: string,
  ...flags: string[]
): Promise<{ code: number | null; report: Report }> {
  const { code, stdout, stderr } = await run(process.execPath, [CHECK, directory, '--json', ...flags]);
  assert.match(stdout, /^\{/, stderr);
  return { code, report: JSON.parse(stdout) as Report };
}

/** Changes bytes behind the node's back. */
function scribble(path: string, offset: number, bytes: Uint8Array): void {
  const fd = openSync(path, 'r+');
  writeSync(fd, bytes, 0, bytes.length, offset);
  closeSync(fd);
}

async function health(node: NodeProcess): Promise<Record<string, string>> {
  const { parts } = (await (await fetch(`${node.metrics}/healthz`)).json()) as {
    parts: Record<string, string>;
  };
  return parts;
}

/** The extents of `nbdinfo --map`, as `offset length status`. */
async function map(node: NodeProcess, name: string, context = ''): Promise<string[]> {
  const { code, stdout, stderr } = await run('nbdinfo', [
    `--map${context && `=${context}`}`,
    `nbd://${node.nbd}/${name}`,
  ]);
  assert.equal(code, 0, stderr);
  return stdout
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).slice(0, 3).join(' '));
}

test('a block that changes on the disk is an error for its reader alone, and is said', async (t) => {
  const directory = temporaryDirectory(t);
  const node = await startNode(t, directory, ['--export', `vol-a=${4 * MIB}`, '--export', `vol-b=${MIB}`]);
  const client = await openExport(node.nbd, 'vol-a');
  const content = randomBytes(64 * 1024);
  assert.equal(await client.write(MIB, content, nbd.NBD_CMD_FLAG_FUA), 0);
  assert.equal(await node.end('SIGTERM'), 0);
  const data = join(directory, 'replicas/vol-a/data');
  scribble(data, MIB + 8192 + 17, Buffer.from([content[8192 + 17]! ^ 1]));
  assert.deepEqual(
    (await check(directory)).report.findings.map(({ replica, severity }) => `${replica} ${severity}`),
    ['vol-a problem', 'vol-b ok'],
  );
  const again = await startNode(t, directory);
  const reader = await openExport(again.nbd, 'vol-a');
  assert.ok(content.subarray(0, 8192).equals(await reader.read(MIB, 8192)));
  assert.equal(await reader.error(nbd.NBD_CMD_READ, MIB + 8192, 4096), nbd.NBD_EIO);
  assert.equal(await reader.error(nbd.NBD_CMD_READ, MIB, 65_536), nbd.NBD_EIO);
  assert.equal(
    await reader.write(MIB + 8192 + 100, Buffer.alloc(10)),
    nbd.NBD_EIO,
    'nothing is merged into it',
  );
  assert.equal(await reader.error(nbd.NBD_CMD_WRITE_ZEROES, MIB + 8192 + 100, 10), nbd.NBD_EIO);
  assert.equal(await (await openExport(again.nbd, 'vol-b')).write(0, content), 0);
  assert.ok((await again.metric('blockwire_node_checksum_errors_total')) >= 4);
  assert.match((await health(again))['vol-a']!, /checksum/);
  assert.match(again.log(), /what was not written/);
  assert.equal(
    await reader.write(MIB + 8192, content.subarray(8192, 12_288)),
    0,
    'written anew it is whole again',
  );
  assert.ok(content.equals(await reader.read(MIB, 65_536)));
});

test('a lost checksum is no lost data: after SIGKILL dirty regions are computed anew, after SIGTERM none', async (t) => {
  const directory = temporaryDirectory(t);
  const first = await startNode(t, directory, ['--export', `vol-a=${8 * MIB}`]);
  const client = await openExport(first.nbd, 'vol-a');
  const content = randomBytes(3 * MIB);
  assert.equal(await client.write(MIB, content, nbd.NBD_CMD_FLAG_FUA), 0);
  assert.equal(await first.end('SIGKILL'), null);
  // What a crash of the machine leaves: the data is there, the checksums are not.
  scribble(join(directory, 'replicas/vol-a/checksums'), 0, Buffer.alloc(8192));
  const unclean = await check(directory);
  assert.equal(unclean.code, 0);
  assert.match(unclean.report.findings[0]!.what, /3 regions would be recomputed/);
  const second = await startNode(t, directory);
  assert.match(second.log(), /"regions":3/);
  assert.ok(content.equals(await (await openExport(second.nbd, 'vol-a')).read(MIB, 3 * MIB)));
  assert.equal(await second.end('SIGTERM'), 0);
  const clean = await check(directory);
  assert.deepEqual(
    clean.report.findings.map(({ severity }) => severity),
    ['ok'],
  );
  const third = await startNode(t, directory);
  assert.doesNotMatch(third.log(), /computing checksums/);
});

test('a checksum file cut under a running node fails reads of that volume, and nothing else', async (t) => {
  const directory = temporaryDirectory(t);
  const exports = ['--export', `vol-a=${8 * MIB}`, '--export', `vol-b=${MIB}`];
  const node = await startNode(t, directory, exports);
  const content = randomBytes(65_536);
  const client = await openExport(node.nbd, 'vol-a');
  const other = await openExport(node.nbd, 'vol-b');
  assert.equal(await client.write(6 * MIB, content), 0);
  assert.equal(await other.write(0, content), 0);
  truncateSync(join(directory, 'replicas/vol-a/checksums'), 4096);
  assert.equal(await client.error(nbd.NBD_CMD_READ, 6 * MIB, 65_536), nbd.NBD_EIO);
  assert.equal(await client.write(6 * MIB, content), 0);
  assert.ok(content.equals(await client.read(6 * MIB, 65_536)), 'as long as the process lives');
  assert.ok(content.equals(await other.read(0, 65_536)));
  await eventually('the volume is not well', async () => (await health(node))['vol-a'] !== undefined);
  assert.equal(await node.end('SIGTERM'), 0);
  assert.equal((await check(directory)).code, 1);
  assert.equal((await check(directory, '--repair')).code, 0);
  const again = await startNode(t, directory);
  assert.ok(content.equals(await (await openExport(again.nbd, 'vol-a')).read(6 * MIB, 65_536)));
});

test('check --repair rebuilds what the data can tell, and never beside a live node', async (t) => {
  const directory = temporaryDirectory(t);
  const names = ['vol-a', 'vol-b', 'vol-c'];
  const node = await startNode(
    t,
    directory,
    names.flatMap((name) => ['--export', `${name}=${2 * MIB}`]),
  );
  const content = randomBytes(MIB);
  for (const name of names) assert.equal(await (await openExport(node.nbd, name)).write(4096, content), 0);
  const beside = await run(process.execPath, [CHECK, directory]);
  assert.equal(beside.code, 1);
  assert.match(beside.stderr, /BW_CONFLICT/);
  assert.equal(await node.end('SIGTERM'), 0);
  truncateSync(join(directory, 'replicas/vol-a/checksums'), 100);
  scribble(join(directory, 'replicas/vol-b/regions'), 0, Buffer.alloc(8));
  const wrong = await check(directory);
  assert.equal(wrong.code, 1);
  const problems = wrong.report.findings.filter(({ severity }) => severity === 'problem');
  assert.deepEqual(
    problems.map(({ replica }) => replica),
    ['vol-a', 'vol-b'],
  );
  const refused = await startNode(t, directory);
  await assert.rejects(openExport(refused.nbd, 'vol-a'), /no such export/);
  await assert.rejects(openExport(refused.nbd, 'vol-b'), /no such export/);
  assert.equal(await refused.end('SIGTERM'), 0);
  const repaired = await check(directory, '--repair');
  assert.equal(repaired.code, 0);
  assert.ok(repaired.report.findings.some(({ what }) => /taken as right/.test(what)));
  const again = await check(directory);
  assert.deepEqual(
    again.report.findings.map(({ severity }) => severity),
    ['ok', 'ok', 'ok'],
  );
  const served = await startNode(t, directory);
  for (const name of names) {
    assert.ok(content.equals(await (await openExport(served.nbd, name)).read(4096, MIB)), name);
  }
  // Without its map everything of vol-b counts as changed; of vol-a what was written.
  assert.deepEqual(await map(served, 'vol-b', 'blockwire:changed-since/1'), [`0 ${2 * MIB} 1`]);
});

test('nbdinfo and qemu-img see holes, changed regions and intents', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${8 * MIB}`]);
  const client = await openExport(node.nbd, 'vol-a');
  assert.equal(await client.write(2 * MIB, randomBytes(64 * 1024)), 0);
  assert.equal(await client.write(5 * MIB - 4096, randomBytes(8192)), 0);
  assert.deepEqual(await map(node, 'vol-a'), [
    `0 ${2 * MIB} 3`,
    `${2 * MIB} 65536 0`,
    `${2 * MIB + 65_536} ${3 * MIB - 65_536 - 4096} 3`,
    `${5 * MIB - 4096} 8192 0`,
    `${5 * MIB + 4096} ${3 * MIB - 4096} 3`,
  ]);
  const changed = [
    `0 ${2 * MIB} 0`,
    `${2 * MIB} ${MIB} 1`,
    `${3 * MIB} ${MIB} 0`,
    `${4 * MIB} ${2 * MIB} 1`,
    `${6 * MIB} ${2 * MIB} 0`,
  ];
  assert.deepEqual(await map(node, 'vol-a', 'blockwire:changed-since/1'), changed);
  assert.deepEqual(await map(node, 'vol-a', 'blockwire:intent'), changed);
  assert.deepEqual(await map(node, 'vol-a', 'blockwire:changed-since/2'), [`0 ${8 * MIB} 0`]);
  const unknown = await run('nbdinfo', ['--map=blockwire:changed-since/x', `nbd://${node.nbd}/vol-a`]);
  assert.notEqual(unknown.code, 0);
  const { stdout } = await run('qemu-img', ['map', '--output=json', '-f', 'raw', `nbd://${node.nbd}/vol-a`]);
  const extents = JSON.parse(stdout) as { start: number; length: number; data: boolean }[];
  assert.deepEqual(
    extents.filter(({ data }) => data).map(({ start, length }) => [start, length]),
    [
      [2 * MIB, 65_536],
      [5 * MIB - 4096, 8192],
    ],
  );
});

/** A control plane that only gives commands. */
async function commander(
  t: TestContext,
): Promise<{ address: string; command(command: NodeCommandInput): Promise<NodeCommandResult> }> {
  const results: NodeCommandResult[] = [];
  const watches: { write(command: NodeCommandInput): void }[] = [];
  const handlers: Partial<NodesHandlers> = {
    Register: (_call, callback) => callback(null, { heartbeatIntervalMs: 1000 }),
    Heartbeat: (_call, callback) => callback(null, {}),
    Watch: (call) => void watches.push(call),
    Complete: (call, callback) => {
      results.push(call.request);
      callback(null, {});
    },
  };
  const server = new Server();
  addNodesService(server, handlers as NodesHandlers);
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  t.after(() => server.forceShutdown());
  return {
    address: `127.0.0.1:${port}`,
    command: async (command) => {
      const before = results.length;
      await eventually('a watch', () => watches.length > 0);
      watches.at(-1)!.write({ commandId: `command-${before}`, ...command });
      await eventually('an outcome', () => results.length > before);
      return results[before]!;
    },
  };
}

test('a file system without reflink refuses snapshots and says what to do; volumes grow while they are used', async (t) => {
  const control = await commander(t);
  const directory = temporaryDirectory(t);
  const node = await startNode(t, directory, [
    '--export',
    `vol-a=${MIB + 777}`,
    '--control',
    control.address,
  ]);
  const client = await openExport(node.nbd, 'vol-a');
  const content = randomBytes(MIB + 777);
  assert.equal(await client.write(0, content), 0);
  const { result } = await control.command({ createSnapshot: { volumeId: 'vol-a', snapshot: 's1' } });
  assert.equal(result?.errorCode, 'BW_SNAPSHOT_UNSUPPORTED');
  assert.match(result.errorMessage, /XFS.*reflink=1.*btrfs/);
  assert.equal(await client.write(0, content), 0, 'writes are not held any more');

  const resize = async (sizeBytes: number): Promise<string> =>
    (await control.command({ resizeReplica: { volumeId: 'vol-a', sizeBytes } })).result!.errorCode;
  assert.equal(await resize(700 * MIB + 1), '');
  assert.equal(await resize(700 * MIB + 1), '', 'safe to repeat');
  assert.equal(await resize(MIB), 'BW_INVALID_ARGUMENT');
  assert.match(
    (await run('nbdinfo', ['--size', `nbd://${node.nbd}/vol-a`])).stdout,
    new RegExp(`^${700 * MIB + 1}\n`),
  );
  const larger = await openExport(node.nbd, 'vol-a');
  assert.equal(await larger.write(600 * MIB + 5, content), 0);
  assert.equal(await client.error(nbd.NBD_CMD_FLUSH, 0, 0), 0, 'older connections live on');
  assert.equal(await node.end('SIGKILL'), null);
  const again = await startNode(t, directory);
  const reader = await openExport(again.nbd, 'vol-a');
  assert.ok(content.equals(await reader.read(0, content.length)));
  assert.ok(content.equals(await reader.read(600 * MIB + 5, content.length)));
  assert.equal(await again.end('SIGTERM'), 0);
  assert.equal((await check(directory)).code, 0);
});

/** A small XFS of the test's own. */
async function mountXfs(t: TestContext): Promise<string> {
  const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-xfs-'));
  // One hook, before those of the nodes: a lazy unmount does not wait for them.
  t.after(async () => {
    await run('umount', ['-l', join(directory, 'xfs')]);
    rmSync(directory, { recursive: true, force: true });
  });
  const image = join(directory, 'image');
  const mounted = join(directory, 'xfs');
  mkdirSync(mounted);
  closeSync(openSync(image, 'w'));
  truncateSync(image, 512 * MIB);
  const succeed = async (command: string, args: string[]): Promise<void> => {
    const { code, stderr } = await run(command, args);
    assert.equal(code, 0, `${command}: ${stderr}`);
  };
  await succeed('mkfs.xfs', ['-q', image]);
  await succeed('mount', ['-o', 'loop', image, mounted]);
  return join(mounted, 'node');
}

test('snapshots and clones share blocks, keep their content, and are told apart from the volume', async (t) => {
  const control = await commander(t);
  const directory = await mountXfs(t);
  const node = await startNode(t, directory, ['--export', `vol-a=${64 * MIB}`, '--control', control.address]);
  const client = await openExport(node.nbd, 'vol-a');
  const before = randomBytes(8 * MIB);
  assert.equal(await client.write(4 * MIB, before), 0);
  const command = async (input: NodeCommandInput): Promise<string> =>
    (await control.command(input)).result!.errorCode;
  // Writes go on meanwhile: each is in the snapshot or not, whole.
  const during = Array.from({ length: 40 }, (_, i) =>
    client.send(nbd.NBD_CMD_WRITE, 32 * MIB + i * 65_536, 65_536, { data: Buffer.alloc(65_536, 9) }),
  );
  const snapshot = { volumeId: 'vol-a', snapshot: 's1' };
  assert.equal(await command({ createSnapshot: snapshot }), '');
  assert.equal(await command({ createSnapshot: snapshot }), '', 'safe to repeat');
  for (const _ of during) assert.equal((await client.reply())?.error, 0);
  const after = randomBytes(MIB);
  assert.equal(await client.write(5 * MIB, after), 0);

  const reader = await openExport(node.nbd, 'vol-a@s1');
  assert.ok(before.equals(await reader.read(4 * MIB, 8 * MIB)));
  for (let i = 0; i < 40; i++) {
    const piece = await reader.read(32 * MIB + i * 65_536, 65_536);
    assert.ok(piece.equals(Buffer.alloc(65_536, piece[0]!)));
  }
  assert.equal(await reader.write(0, Buffer.alloc(4096)), nbd.NBD_EPERM);
  assert.equal(await reader.error(nbd.NBD_CMD_TRIM, 0, 4096), nbd.NBD_EPERM);
  assert.equal(await reader.error(nbd.NBD_CMD_WRITE_ZEROES, 0, 4096), nbd.NBD_EPERM);
  const info = await run('nbdinfo', ['--json', `nbd://${node.nbd}/vol-a@s1`]);
  const { exports } = JSON.parse(info.stdout) as {
    exports: { is_read_only: boolean; 'export-size': number }[];
  };
  assert.equal(exports[0]?.is_read_only, true);
  assert.ok(after.equals(await client.read(5 * MIB, MIB)));

  const clone = { sourceVolumeId: 'vol-a', snapshot: 's1', volumeId: 'vol-c', generation: 1, epoch: 3 };
  assert.equal(await command({ cloneReplica: clone }), '');
  assert.equal(await command({ cloneReplica: clone }), '', 'safe to repeat');
  const writer = await openExport(node.nbd, 'vol-c');
  assert.ok(before.equals(await writer.read(4 * MIB, 8 * MIB)));
  assert.equal(await writer.write(6 * MIB, after, nbd.NBD_CMD_FLAG_FUA), 0);
  assert.ok(before.equals(await reader.read(4 * MIB, 8 * MIB)), 'the snapshot does not change');
  const changed = await map(node, 'vol-c', 'blockwire:changed-since/3');
  assert.equal(changed[1], `${4 * MIB} ${8 * MIB} 1`);
  assert.equal(await command({ deleteSnapshot: { volumeId: 'vol-a', snapshot: 's1' } }), '');
  assert.equal(
    await command({ deleteSnapshot: { volumeId: 'vol-a', snapshot: 's1' } }),
    '',
    'safe to repeat',
  );
  await assert.rejects(openExport(node.nbd, 'vol-a@s1'), /no such export/);
  assert.equal(
    await command({ createSnapshot: { volumeId: 'vol-a', snapshot: '../x' } }),
    'BW_INVALID_ARGUMENT',
  );
  assert.equal(await command({ createSnapshot: { volumeId: 'vol-a', snapshot: 's2' } }), '');
  assert.equal(await node.end('SIGKILL'), null);

  const again = await startNode(t, directory);
  const second = await openExport(again.nbd, 'vol-a@s2');
  assert.ok(after.equals(await second.read(5 * MIB, MIB)));
  assert.ok(after.equals(await (await openExport(again.nbd, 'vol-c')).read(6 * MIB, MIB)));
  assert.equal(await again.end('SIGTERM'), 0);
  const { report } = await check(directory);
  assert.deepEqual(
    report.findings.map(({ replica, severity }) => `${replica} ${severity}`),
    ['vol-a ok', 'vol-a@s2 ok', 'vol-c ok'],
  );
});

test('a full disk: ENOSPC for what finds no space, everything else goes on', async (t) => {
  const directory = await mountXfs(t);
  const exports = ['--export', `vol-a=${400 * MIB}`, '--export', `vol-b=${MIB}`];
  const node = await startNode(t, directory, ['--capacity-bytes', `${2 ** 40}`, ...exports]);
  const client = await openExport(node.nbd, 'vol-a');
  const other = await openExport(node.nbd, 'vol-b');
  const block = randomBytes(MIB);
  assert.equal(await other.write(0, block), 0);
  const filler = join(directory, '../filler');
  await run('fallocate', ['-l', `${300 * MIB}`, filler]);
  const errors = new Map<number, number>();
  for (let at = 0; at < 400 * MIB; at += MIB) {
    const error = await client.write(at, block);
    errors.set(error, (errors.get(error) ?? 0) + 1);
  }
  assert.deepEqual(
    [...errors.keys()].sort((a, b) => a - b),
    [0, nbd.NBD_ENOSPC],
  );
  assert.ok(block.equals(await client.read(0, MIB)));
  assert.ok(block.equals(await other.read(0, MIB)));
  assert.match((await health(node))['vol-a']!, /ENOSPC/);
  // Whatever became of the writes that failed, they are readable, and whole again once they succeed.
  for (let at = 0; at < 400 * MIB; at += 16 * MIB) assert.equal((await client.read(at, MIB)).length, MIB);
  rmSync(filler);
  assert.equal(await client.write(399 * MIB, block), 0);
  assert.ok(block.equals(await client.read(399 * MIB, MIB)));
  assert.equal(await node.end('SIGKILL'), null);
  const again = await startNode(t, directory);
  assert.ok(block.equals(await (await openExport(again.nbd, 'vol-a')).read(399 * MIB, MIB)));
  assert.equal(readFileSync(join(directory, 'replicas/vol-a/checksums')).length, 409_600);
});
