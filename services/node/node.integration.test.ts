/** A real node, real NBD clients (Debian: libnbd-bin, qemu-utils, fio), and clients that misbehave. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { copyFileSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ClientHandshake } from '@blockwire/proto/nbd/client-handshake.ts';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { connectSocket, openExport } from './testing/nbd-client.ts';
import { eventually, type NodeProcess, run, startNode, temporaryDirectory } from './testing/node-process.ts';

const MIB = 2 ** 20;
const SIZE = 32 * MIB;

function uri(node: NodeProcess, name: string): string {
  return `nbd://${node.nbd}/${name}`;
}

async function succeed(command: string, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await run(command, args);
  assert.equal(code, 0, `${command} ${args.join(' ')}\n${stdout}${stderr}`);
  return stdout + stderr;
}

test('nbdinfo sees size, commands and block sizes; unknown names are refused', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), [
    '--export',
    'vol-a=33554433',
    '--export',
    'vol-b=4096',
  ]);
  const { stdout } = await run('nbdinfo', ['--json', uri(node, 'vol-a')]);
  const [found] = JSON.parse(stdout).exports as Record<string, unknown>[];
  assert.ok(found);
  assert.equal(found['export-size'], 33554433);
  for (const flag of [
    'can_flush',
    'can_fua',
    'can_multi_conn',
    'can_trim',
    'can_zero',
    'can_fast_zero',
    'can_df',
  ]) {
    assert.equal(found[flag], true, flag);
  }
  assert.equal(found.is_read_only, false);
  assert.equal(found.block_size_minimum, 1);
  assert.equal(found.block_size_maximum, 32 * MIB);
  const list = JSON.parse((await run('nbdinfo', ['--list', '--json', `nbd://${node.nbd}`])).stdout);
  assert.deepEqual(
    (list.exports as { 'export-name': string }[]).map((entry) => entry['export-name']),
    ['vol-a', 'vol-b'],
  );
  const refused = await run('nbdinfo', [uri(node, 'nope')]);
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /nope/);
});

test('nbdcopy and qemu-img bring content there and back', async (t) => {
  const directory = temporaryDirectory(t);
  const node = await startNode(t, join(directory, 'data'), ['--export', `vol-a=${SIZE}`]);
  const source = join(directory, 'source');
  const content = randomBytes(SIZE);
  content.fill(0, 5 * MIB, 9 * MIB);
  writeFileSync(source, content);
  await succeed('nbdcopy', [source, uri(node, 'vol-a')]);
  await succeed('nbdcopy', ['--connections=4', uri(node, 'vol-a'), join(directory, 'back')]);
  assert.ok(content.equals(readFileSync(join(directory, 'back'))));
  assert.ok(content.equals(readFileSync(join(directory, 'data/replicas/vol-a/data'))));
  await succeed('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, uri(node, 'vol-a')]);
  content.fill(0x5a, 0, 3 * MIB + 123);
  writeFileSync(source, content);
  await succeed('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri(node, 'vol-a')]);
  await succeed('qemu-img', [
    'convert',
    '-f',
    'raw',
    '-O',
    'raw',
    uri(node, 'vol-a'),
    join(directory, 'back'),
  ]);
  assert.ok(content.equals(readFileSync(join(directory, 'back'))));
});

test('qemu-io: misaligned writes, zeroes, discard, long requests, FUA', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', 'vol-a=33554433']);
  const script = [
    'write -P 0xab 0 1M',
    'write -P 0xcd 123 4567',
    'read -P 0xab 0 123',
    'read -P 0xcd 123 4567',
    'read -P 0xab 4690 1000',
    'write -z 4096 65536',
    'read -P 0 4096 65536',
    'read -P 0xcd 123 3973',
    'write -z -u 100000 300001',
    'read -P 0 100000 300001',
    'discard 0 1M',
    'write -P 7 1000001 20M',
    'read -P 7 1000001 20M',
    'write -P 9 33554400 33',
    'read -P 9 33554400 33',
    'aio_write -P 1 0 32k',
    'aio_write -P 2 16k 32k',
    'aio_flush',
    'read -P 1 0 16k',
    'read -P 2 16k 32k',
    'write -f -P 3 513 3',
    'read -P 3 513 3',
    'flush',
  ];
  const output = await succeed('qemu-io', [
    '-f',
    'raw',
    uri(node, 'vol-a'),
    ...script.flatMap((line) => ['-c', line]),
  ]);
  assert.doesNotMatch(output, /failed|error/i);
  assert.ok((await node.metric('blockwire_node_read_modify_writes_total')) > 0);
});

test('fio verifies random writes of mixed sizes on several connections', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${SIZE}`]);
  const common = [
    '--ioengine=nbd',
    `--uri=${uri(node, 'vol-a')}`,
    '--iodepth=16',
    '--verify=crc32c',
    '--verify_state_save=0',
  ];
  const jobs = [0, 1].flatMap((index) => [
    `--name=job${index}`,
    '--rw=randwrite',
    '--bsrange=512-128k',
    '--blockalign=512',
    `--offset=${index * 16 * MIB}`,
    '--size=16m',
    '--verify_fatal=1',
  ]);
  const output = await succeed('fio', [...common, ...jobs]);
  assert.doesNotMatch(output, /verify:|bad magic/);
});

test('malformed and impossible requests get their error, and the connection lives on', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${SIZE}`]);
  const client = await openExport(node.nbd, 'vol-a');
  const block = randomBytes(4096);
  assert.equal(await client.error(nbd.NBD_CMD_READ, SIZE - 1, 2), nbd.NBD_EINVAL);
  assert.equal(await client.write(SIZE - 4095, block), nbd.NBD_ENOSPC);
  assert.equal(await client.error(nbd.NBD_CMD_WRITE_ZEROES, SIZE, 1), nbd.NBD_ENOSPC);
  assert.equal(await client.error(nbd.NBD_CMD_TRIM, 0, SIZE + 1), nbd.NBD_EINVAL);
  assert.equal(await client.error(nbd.NBD_CMD_READ, 0, 33 * MIB), nbd.NBD_EINVAL);
  assert.equal(await client.error(nbd.NBD_CMD_READ, 2 ** 53 - 4096, 4096), nbd.NBD_EINVAL);
  assert.equal(await client.error(99, 0, 0), nbd.NBD_EINVAL);
  assert.equal(await client.error(0x4242, 0, 0), nbd.NBD_EINVAL);
  assert.equal(await client.error(nbd.NBD_CMD_READ, 0, 512, { flags: 0x80 }), nbd.NBD_EINVAL);
  assert.equal(await client.error(nbd.NBD_CMD_READ, 0, 512, { flags: nbd.NBD_CMD_FLAG_DF }), nbd.NBD_EINVAL);
  assert.equal(await client.error(nbd.NBD_CMD_BLOCK_STATUS, 0, 4096), nbd.NBD_EINVAL);
  assert.equal(await client.write(0, new Uint8Array(33 * MIB)), nbd.NBD_EINVAL);
  assert.equal(await client.error(nbd.NBD_CMD_READ, 0, 0), 0);
  assert.equal(await client.error(nbd.NBD_CMD_CACHE, 0, SIZE), 0);
  assert.equal(await client.write(8192, block, nbd.NBD_CMD_FLAG_FUA), 0);
  assert.ok(block.equals(await client.read(8192, 4096)));
  client.send(nbd.NBD_CMD_DISC, 0, 0);
  assert.equal(await client.reply(), null);
});

test('broken frames end their connection only', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${SIZE}`]);
  const witness = await openExport(node.nbd, 'vol-a');
  const wrongMagic = await openExport(node.nbd, 'vol-a');
  wrongMagic.socket.write(Buffer.alloc(28, 0x11));
  assert.equal(await wrongMagic.reply(), null);
  const garbage = await connectSocket(node.nbd);
  garbage.socket.write('GET / HTTP/1.1\r\nHost: node\r\n\r\n');
  while ((await garbage.readSome()) !== null);

  const failedBefore = await node.metric('blockwire_node_connections_failed_total');
  const halfHeader = await openExport(node.nbd, 'vol-a');
  halfHeader.socket.end(Buffer.from('2560951300', 'hex'));
  assert.equal(await halfHeader.reply(), null);
  // Half of a payload: in the receive block, and one that is received straight into its block, and a part of a long one.
  for (const [length, sent] of [
    [4096, 1000],
    [MIB, 100_000],
    [8 * MIB, 3 * MIB],
  ] as const) {
    const half = await openExport(node.nbd, 'vol-a');
    half.send(nbd.NBD_CMD_WRITE, 16 * MIB, length, { data: new Uint8Array(sent) });
    half.socket.end();
    assert.equal(await half.reply(), null);
  }
  await eventually(
    'four more failed connections',
    async () => (await node.metric('blockwire_node_connections_failed_total')) === failedBefore + 4,
  );
  await eventually('one connection', async () => (await node.metric('blockwire_node_connections')) === 1);
  const block = randomBytes(4096);
  assert.equal(await witness.write(0, block), 0);
  assert.ok(block.equals(await witness.read(0, 4096)));
});

test('a seeded stream of random requests never ends the process, and leaks neither slots nor memory', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${SIZE}`]);
  const idle = await node.metric('blockwire_node_pool_free_bytes');
  let state = 20260;
  const random = (): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state >>> 8;
  };
  for (let round = 0; round < 60; round++) {
    const client = await openExport(node.nbd, 'vol-a');
    client.socket.resume();
    const chunks: Buffer[] = [];
    for (let i = random() % 40; i >= 0; i--) {
      const header = Buffer.alloc(28);
      header.writeUInt32BE(nbd.NBD_REQUEST_MAGIC, 0);
      header.writeUInt16BE(random() % 4 === 0 ? random() % 65536 : random() % 32, 4);
      header.writeUInt16BE(random() % 10, 6);
      header.writeUInt32BE(random() % 5 === 0 ? random() : 0, 16);
      header.writeUInt32BE(random() % (SIZE + 65536), 20);
      header.writeUInt32BE(random() % 7 === 0 ? random() % (2 * MIB) : random() % 20000, 24);
      chunks.push(header, randomBytes(random() % 3 === 0 ? random() % 20000 : 0));
    }
    client.socket.end(Buffer.concat(chunks));
    await new Promise((resolve) => client.socket.once('close', resolve));
  }
  await eventually('no connection', async () => (await node.metric('blockwire_node_connections')) === 0);
  assert.equal(await node.metric('blockwire_node_pool_free_bytes'), idle);
  const client = await openExport(node.nbd, 'vol-a');
  assert.equal(await client.error(nbd.NBD_CMD_FLUSH, 0, 0), 0);
});

test('overlapping writes take effect in the order of arrival', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${SIZE}`]);
  const client = await openExport(node.nbd, 'vol-a');
  const expected = Buffer.alloc(64 * 1024);
  for (let round = 0; round < 200; round++) {
    const offset = (round * 977) % 40_000;
    const data = Buffer.alloc(1 + ((round * 7919) % 20_000), round + 1);
    data.copy(expected, offset);
    client.send(nbd.NBD_CMD_WRITE, offset, data.length, { data });
  }
  for (let round = 0; round < 200; round++) assert.equal((await client.reply())?.error, 0);
  assert.ok(expected.equals(await client.read(0, expected.length)));
  assert.ok((await node.metric('blockwire_node_overlap_waits_total')) > 0);
});

test('a client that reads no replies holds nobody up', async (t) => {
  const node = await startNode(t, temporaryDirectory(t), ['--export', `vol-a=${SIZE}`, '--buffer-mib', '16']);
  const stuck = await Promise.all([0, 1, 2].map(() => openExport(node.nbd, 'vol-a')));
  for (const client of stuck) {
    client.socket.pause();
    for (let i = 0; i < 2000; i++) client.send(nbd.NBD_CMD_READ, (i % 16) * MIB, 4096 * 8);
  }
  const client = await openExport(node.nbd, 'vol-a');
  const block = randomBytes(65536);
  for (let i = 0; i < 50; i++) {
    assert.equal(await client.write(i * 65536, block), 0);
    assert.ok(block.equals(await client.read(i * 65536, block.length)));
  }
  assert.equal(await node.metric('blockwire_node_connections'), 4, 'nobody was thrown out for it');
  for (const other of stuck) other.close();
  await eventually('one connection', async () => (await node.metric('blockwire_node_connections')) === 1);
});

test('two workers: volumes and connections at once, handed to the worker of the volume', async (t) => {
  const names = ['vol-1', 'vol-2', 'vol-3', 'vol-4'];
  const exports = names.flatMap((name) => ['--export', `${name}=${4 * MIB}`]);
  const node = await startNode(t, temporaryDirectory(t), ['--workers', '2', ...exports]);
  const clients = await Promise.all(
    Array.from({ length: 24 }, async (_, index) => {
      const client = await openExport(node.nbd, names[index % 4]!);
      // Sent at once behind the handshake: what arrives early must travel with the connection.
      const data = Buffer.alloc(8192, index + 1);
      assert.equal(await client.write(Math.floor(index / 4) * 8192, data), 0);
      return client;
    }),
  );
  for (const [index, client] of clients.entries()) {
    const all = await client.read(0, 6 * 8192);
    for (let place = 0; place < 6; place++) {
      const writer = place * 4 + (index % 4);
      assert.ok(all.subarray(place * 8192, (place + 1) * 8192).equals(Buffer.alloc(8192, writer + 1)));
    }
  }
  assert.ok((await node.metric('blockwire_node_connection_handovers_total')) > 0);
  assert.equal(await node.metric('blockwire_node_connections'), 24);
});

test('requests that arrive together with GO are served, also when the connection changes hands', async (t) => {
  const exports = ['vol-1', 'vol-2', 'vol-3'].flatMap((name) => ['--export', `${name}=${MIB}`]);
  const node = await startNode(t, temporaryDirectory(t), ['--workers', '2', ...exports]);
  for (let round = 0; round < 12; round++) {
    const reader = await connectSocket(node.nbd);
    const handshake = new ClientHandshake({ exportName: `vol-${1 + (round % 3)}`, structuredReplies: false });
    handshake.consume((await reader.read(18))!);
    const flush = Buffer.alloc(28);
    flush.writeUInt32BE(nbd.NBD_REQUEST_MAGIC, 0);
    flush.writeUInt16BE(nbd.NBD_CMD_FLUSH, 6);
    flush.writeUInt32BE(0xfeed, 12);
    reader.socket.write(Buffer.concat([handshake.takeOutput(), flush]));
    // Replies of the handshake: export (32 bytes), block sizes (34), acknowledgement (20).
    const answer = await reader.read(32 + 34 + 20 + 16);
    assert.equal(answer?.subarray(-16).toString('hex'), '67446698000000000000000000' + '00feed');
    reader.socket.destroy();
  }
});

test('SIGTERM under load ends cleanly; SIGKILL loses nothing that was acknowledged', async (t) => {
  const directory = temporaryDirectory(t);
  const first = await startNode(t, directory, ['--export', `vol-a=${SIZE}`]);
  const block = randomBytes(MIB);
  const client = await openExport(first.nbd, 'vol-a');
  assert.equal(await client.write(3 * MIB, block), 0);
  assert.equal(await client.error(nbd.NBD_CMD_FLUSH, 0, 0), 0);
  for (let i = 0; i < 100; i++) client.send(nbd.NBD_CMD_READ, 0, MIB);
  assert.equal(await first.end('SIGTERM'), 0);
  const second = await startNode(t, directory);
  const again = await openExport(second.nbd, 'vol-a');
  assert.ok(block.equals(await again.read(3 * MIB, MIB)));
  assert.equal(await again.write(5 * MIB, block, nbd.NBD_CMD_FLAG_FUA), 0);
  assert.equal(await second.end('SIGKILL'), null);
  const third = await startNode(t, directory);
  const last = await openExport(third.nbd, 'vol-a');
  assert.ok(block.equals(await last.read(5 * MIB, MIB)));
});

test('one node per data directory; a damaged replica is left out and said, the others are served', async (t) => {
  const directory = temporaryDirectory(t);
  const exports = ['vol-a', 'vol-b', 'vol-c'].flatMap((name) => ['--export', `${name}=${MIB}`]);
  const first = await startNode(t, directory, exports);
  await assert.rejects(startNode(t, directory), /BW_CONFLICT.*another node/);
  assert.equal(await first.end('SIGTERM'), 0);
  await assert.rejects(startNode(t, directory, ['--id', 'node-2']), /BW_CONFLICT.*belongs to node-1/);

  const descriptor = join(directory, 'replicas/vol-a/descriptor.json');
  writeFileSync(descriptor, readFileSync(descriptor).subarray(0, 20));
  truncateSync(join(directory, 'replicas/vol-b/data'), 4096);
  mkdirSync(join(directory, 'replicas/.new-vol-d'));
  copyFileSync(descriptor, join(directory, 'replicas/.new-vol-d/descriptor.json'));
  const second = await startNode(t, directory);
  await assert.rejects(openExport(second.nbd, 'vol-a'), /no such export/);
  await assert.rejects(openExport(second.nbd, 'vol-b'), /no such export/);
  assert.equal(await (await openExport(second.nbd, 'vol-c')).error(nbd.NBD_CMD_FLUSH, 0, 0), 0);
  const health = await fetch(`${second.metrics}/healthz`);
  assert.equal(health.status, 503);
  const { parts } = (await health.json()) as { parts: Record<string, string> };
  assert.match(parts['vol-a']!, /descriptor\.json/);
  assert.match(parts['vol-b']!, /cut/);
});

test('a file cut behind the node: that request fails with EIO, the other volume goes on', async (t) => {
  const directory = temporaryDirectory(t);
  const exports = ['vol-a', 'vol-b'].flatMap((name) => ['--export', `${name}=${8 * MIB}`]);
  const node = await startNode(t, directory, exports);
  const a = await openExport(node.nbd, 'vol-a');
  const b = await openExport(node.nbd, 'vol-b');
  truncateSync(join(directory, 'replicas/vol-a/data'), MIB);
  assert.equal(await a.error(nbd.NBD_CMD_READ, 4 * MIB, 4096), nbd.NBD_EIO);
  assert.equal((await a.read(0, 4096)).length, 4096);
  // A long read that fails half way: with simple replies there is only one way to say it.
  a.send(nbd.NBD_CMD_READ, 0, 3 * MIB);
  assert.equal(await a.reply(3 * MIB), null);
  assert.equal(await b.write(0, randomBytes(4096)), 0);
  assert.equal((await fetch(`${node.metrics}/healthz`)).status, 503);
});
