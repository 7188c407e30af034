/** Rebuilds, reconciling and fencing between real processes, over real NBD, with a writer at work. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Mirror, TestCluster, type TestNode, VOLUME } from './testing/cluster.ts';
import { eventually } from './testing/node-process.ts';

const MIB = 2 ** 20;

/** Two replicas in sync at generation 2, epoch 2, with content in their first regions and no intents. */
async function pair(cluster: TestCluster, sizeBytes: number, usedBytes: number) {
  const nodes = [await cluster.node('node-a'), await cluster.node('node-b')] as const;
  for (const node of nodes) {
    assert.equal(await node.create(sizeBytes, 1, 1), '');
    assert.equal(await node.install(2, 2), '');
  }
  const clients = [await nodes[0].open('writer', 2, 2), await nodes[1].open('writer', 2, 2)];
  const mirror = new Mirror(clients, Buffer.alloc(sizeBytes));
  for (let at = 0; at < usedBytes; at += MIB) await mirror.write(at, randomBytes(MIB));
  await mirror.checkpoint(2);
  await eventually('intents are gone', () => nodes.every((node) => intents(node) === 0));
  return { nodes, mirror };
}

/** Regions with an intent, on the disk. */
function intents(node: TestNode): number {
  const file = readFileSync(join(node.dataDir, 'replicas', VOLUME, 'regions'));
  let count = 0;
  for (let at = 4096; at < file.length; at += 8) if ((file.readUInt32LE(at + 4) & 2) !== 0) count++;
  return count;
}

/** Writes pieces of any size, aligned to sectors, to regions `first` to before `end`, until `stop`. */
function writeOnAndOn(mirror: Mirror, first: number, end: number) {
  let stopped = false;
  let count = 0;
  const running = (async () => {
    while (!stopped) {
      const sectors = 1 + Math.floor(Math.random() ** 3 * 100);
      const room = ((end - first) * MIB) / 512 - sectors;
      const offset = first * MIB + Math.floor(Math.random() * room) * 512;
      await mirror.write(offset, randomBytes(sectors * 512));
      count++;
    }
  })();
  return {
    stop: async () => {
      stopped = true;
      await running;
      return count;
    },
  };
}

test('a delta rebuild under a writer moves what has changed, and ends with equal replicas', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 96 * MIB + 4096;
  const { nodes, mirror: before } = await pair(cluster, sizeBytes, 32 * MIB);
  const [a, b] = nodes;
  await b.kill();
  assert.equal(await a.install(2, 3), '');
  const alone = new Mirror([await a.open('writer', 2, 3, 2)], before.expected);
  before.close();
  for (let region = 4; region < 12; region++) await alone.write(region * MIB, randomBytes(MIB));
  // Holes come too, and the volume's cut end.
  await alone.write(sizeBytes - 4096, randomBytes(4096));
  await b.start();
  assert.equal(await a.install(2, 4), '');
  assert.equal(await b.install(2, 4, 4), '');
  const clients = [await a.open('writer', 2, 4, 3), await b.open('writer', 2, 4, 3)];
  alone.close();
  await assert.rejects(b.open('peer', 2, 4), /BW_CONFLICT/, 'nobody copies from one being rebuilt');
  const mirror = new Mirror(clients, alone.expected);
  const writer = writeOnAndOn(mirror, 4, 12);
  const rebuild = { order: a.order(2, 4), sinceEpoch: 3, joinedEpoch: 4, bytesPerSecond: 32 * MIB };
  assert.equal(await cluster.command(b, { rebuild }), '');
  assert.equal(await cluster.command(b, { rebuild }), '', 'the same one again');
  await eventually('progress', () =>
    cluster.control.beats.some(({ rebuilds }) => rebuilds.some((found) => found.copiedBytes > 0)),
  );
  assert.equal(await cluster.rebuilt(4), '');
  const written = await writer.stop();
  assert.ok(written > 50, `the writer wrote ${written} times beside it`);
  const moved = await b.receivedBytes();
  const changed = 8 * MIB + 4096;
  assert.ok(moved >= changed && moved <= 1.2 * changed, `${moved} bytes moved, ${changed} changed`);
  t.diagnostic(`${(moved / changed).toFixed(3)} times what has changed, ${written} writes beside it`);
  for (const node of nodes) assert.equal(await node.install(2, 5), '');
  for (const node of nodes) assert.ok((await node.content(2, sizeBytes)).equals(mirror.expected), node.id);
  mirror.close();
});

test('a new replica gets what is allocated, and stays as thin as its source', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 160 * MIB;
  const { nodes, mirror } = await pair(cluster, sizeBytes, 4 * MIB);
  const [a] = nodes;
  // A block here and there.
  for (let region = 100; region < 132; region++) await mirror.write(region * MIB + 12_288, randomBytes(4096));
  const c = await cluster.node('node-c');
  assert.equal(await c.create(sizeBytes, 2, 2), '');
  assert.equal(await a.install(2, 3), '');
  assert.equal(await c.install(2, 3, 3), '');
  const rebuild = { order: a.order(2, 3), sinceEpoch: 0, joinedEpoch: 3, bytesPerSecond: 0 };
  assert.equal(await cluster.command(c, { rebuild }), '');
  assert.equal(await cluster.rebuilt(3), '');
  const allocated = 4 * MIB + 32 * 4096;
  assert.equal(await c.receivedBytes(), allocated);
  const blocks = (node: TestNode): number => statSync(join(node.dataDir, 'replicas', VOLUME, 'data')).blocks;
  assert.equal(blocks(c), blocks(a));
  assert.equal(await c.install(2, 4), '');
  assert.ok((await c.content(2, sizeBytes)).equals(mirror.expected));
  mirror.close();
});

test('after a writer died, what it wrote to one replica only is made equal', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 64 * MIB;
  const { nodes, mirror } = await pair(cluster, sizeBytes, 8 * MIB);
  const [a, b] = nodes;
  mirror.close();
  const clients = [await a.open('writer', 2, 2, 2), await b.open('writer', 2, 2, 2)] as const;
  assert.equal(await clients[0].write(MIB, randomBytes(MIB)), 0);
  assert.equal(await clients[1].write(5 * MIB + 4096, randomBytes(8192)), 0);
  for (const node of nodes) assert.equal(await node.install(3, 3), '');
  assert.equal(await clients[0].write(0, randomBytes(4096)), -1, 'the dead one is cut');
  const order = a.order(3, 3);
  assert.equal(await cluster.command(b, { reconcile: { order: { ...order, epoch: 2 } } }), 'BW_EPOCH_OLD');
  assert.equal(await cluster.command(b, { reconcile: { order } }), '');
  assert.equal(await b.receivedBytes(), 2 * MIB, 'the regions with intents on either side');
  assert.ok((await a.content(3, sizeBytes)).equals(await b.content(3, sizeBytes)));
});

test('a reconcile ends when a membership is installed, also the same one: its replica may be the next source', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 16 * MIB;
  const { nodes, mirror } = await pair(cluster, sizeBytes, 2 * MIB);
  const [a, b] = nodes;
  mirror.close();
  const client = await a.open('writer', 2, 2, 2);
  assert.equal(await client.write(MIB, randomBytes(MIB)), 0);
  for (const node of nodes) assert.equal(await node.install(3, 3), '');
  const before = await b.content(3, sizeBytes);
  a.process!.child.kill('SIGSTOP');
  const given = cluster.command(b, { reconcile: { order: a.order(3, 3) } });
  assert.equal(await b.install(3, 3), '');
  a.process!.child.kill('SIGCONT');
  assert.equal(await given, 'BW_PEER_UNREACHABLE');
  assert.equal(await cluster.command(a, { reconcile: { order: b.order(3, 3) } }), '');
  for (const node of nodes) assert.ok((await node.content(3, sizeBytes)).equals(before), node.id);
});

test('SIGKILL of either side in the middle of a rebuild; ordered again, it ends well', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 64 * MIB;
  const { nodes, mirror } = await pair(cluster, sizeBytes, 48 * MIB);
  const [a] = nodes;
  mirror.close();
  const c = await cluster.node('node-c');
  assert.equal(await c.create(sizeBytes, 2, 2), '');
  let epoch = 2;
  const begin = async (bytesPerSecond: number): Promise<void> => {
    epoch++;
    assert.equal(await a.install(2, epoch), '');
    assert.equal(await c.install(2, epoch, epoch), '');
    const rebuild = { order: a.order(2, epoch), sinceEpoch: 0, joinedEpoch: epoch, bytesPerSecond };
    assert.equal(await cluster.command(c, { rebuild }), '');
  };
  const midway = async (): Promise<void> => {
    await eventually('half of it', async () => (await c.receivedBytes()) > 4 * MIB);
  };
  await begin(8 * MIB);
  await midway();
  await c.kill();
  await c.start();
  await begin(8 * MIB);
  await midway();
  await a.kill();
  assert.notEqual(await cluster.rebuilt(epoch), '', 'it ends with its source');
  await a.start();
  await begin(0);
  assert.equal(await cluster.rebuilt(epoch), '');
  assert.equal(await c.install(2, epoch + 1), '');
  assert.ok((await c.content(2, sizeBytes)).equals(mirror.expected));
});

test('another writer ends a rebuild; the old one writes nothing any more, whatever is in its sockets', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 64 * MIB;
  const { nodes, mirror } = await pair(cluster, sizeBytes, 32 * MIB);
  const [a, b] = nodes;
  mirror.close();
  for (const [node, joined] of [
    [a, null],
    [b, 3],
  ] as const) {
    assert.equal(await node.install(2, 3, joined), '');
  }
  const rebuild = { order: a.order(2, 3), sinceEpoch: 2, joinedEpoch: 3, bytesPerSecond: 4 * MIB };
  assert.equal(await cluster.command(b, { rebuild }), '');
  const old = await a.open('writer', 2, 3, 9);
  const oldBlock = Buffer.alloc(65_536, 1);
  let sent = 0;
  const flood = setInterval(() => {
    for (let i = 0; i < 50; i++) old.send(1, (sent++ % 128) * 65_536, 65_536, { data: oldBlock });
  }, 1);
  await eventually('it writes', () => sent > 500);
  old.socket.on('error', () => undefined);
  for (const node of nodes) assert.equal(await node.install(3, 4), '');
  const fresh = await a.open('writer', 3, 4);
  for (let i = 0; i < 128; i++) assert.equal(await fresh.write(i * 65_536, Buffer.alloc(65_536, 2)), 0);
  await new Promise((resolve) => setTimeout(resolve, 200));
  clearInterval(flood);
  old.close();
  assert.notEqual(await cluster.rebuilt(3), '', 'the rebuild has ended early');
  const found = await fresh.read(0, 128 * 65_536);
  assert.ok(found.equals(Buffer.alloc(128 * 65_536, 2)), 'nothing of the old writer came behind the new one');
  fresh.close();
});

test('after a power failure with intents a replica lets nobody in, until it is rebuilt', async (t) => {
  const cluster = await TestCluster.start(t);
  const { nodes, mirror } = await pair(cluster, 16 * MIB, 2 * MIB);
  const [a, b] = nodes;
  const restart = async (bootId: string | null): Promise<boolean> => {
    await b.kill();
    const path = join(b.dataDir, 'replicas', VOLUME, 'descriptor.json');
    const descriptor = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
    if (bootId !== null) writeFileSync(path, JSON.stringify({ ...descriptor, bootId }));
    await b.start();
    const { replicas } = cluster.control.registered.findLast(({ nodeId }) => nodeId === b.id)!;
    return replicas[0]!.unclean;
  };
  assert.equal(await restart('another boot'), false, 'without intents nothing is lost');
  mirror.close();
  const client = await b.open('writer', 2, 2, 2);
  assert.equal(await client.write(0, randomBytes(4096)), 0);
  assert.equal(await restart(null), false, 'a process that ends loses nothing');
  assert.equal(await restart('another boot'), true);
  assert.equal(await restart(null), true, 'it stays so');
  await assert.rejects(b.open('writer', 2, 2, 3), /BW_REPLICA_DAMAGED/);
  await assert.rejects(b.open('reader', 2, null), /BW_REPLICA_DAMAGED/);
  assert.equal(await b.install(2, 3), 'BW_REPLICA_DAMAGED');
  assert.equal(await a.install(2, 3), '');
  assert.equal(await b.install(2, 3, 3), '');
  const rebuild = { order: a.order(2, 3), sinceEpoch: 3, joinedEpoch: 3, bytesPerSecond: 0 };
  assert.equal(await cluster.command(b, { rebuild }), '');
  assert.equal(await cluster.rebuilt(3), '');
  assert.equal(await b.install(2, 4), '');
  assert.ok((await b.content(2, 16 * MIB)).equals(mirror.expected), 'its own intents were copied');
});

/** Changes a block behind the node's back. */
function rot(node: TestNode, offset: number): void {
  const fd = openSync(join(node.dataDir, 'replicas', VOLUME, 'data'), 'r+');
  writeSync(fd, Buffer.alloc(4096, 0xee), 0, 4096, offset);
  fsyncSync(fd);
  closeSync(fd);
}

test('damage is reported once, repaired from the other replica under a writer, and nothing else is touched', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 32 * MIB;
  const { nodes, mirror } = await pair(cluster, sizeBytes, 16 * MIB);
  const [a, b] = nodes;
  rot(b, 3 * MIB + 8192);
  const reader = await b.open('reader', 2, null);
  await assert.rejects(reader.read(3 * MIB, 65_536), /read failed: 5/);
  await assert.rejects((await b.open('reader', 2, null)).read(3 * MIB + 8192, 512), /read failed: 5/);
  await eventually('the report', () => cluster.control.damages.length > 0);
  assert.deepEqual(cluster.control.damages, [{ nodeId: b.id, volumeId: VOLUME, regions: [3] }]);
  const writer = writeOnAndOn(mirror, 0, 3);
  const repair = { order: a.order(2, 2), regions: [3, 9] };
  assert.equal(await cluster.command(b, { repair }), '');
  await writer.stop();
  assert.equal(
    await b.process!.metric('blockwire_node_written_bytes_total'),
    await a.process!.metric('blockwire_node_written_bytes_total'),
  );
  for (const node of nodes) assert.ok((await node.content(2, sizeBytes)).equals(mirror.expected), node.id);
  const health = (await (await fetch(`${b.process!.metrics}/healthz`)).json()) as { healthy: boolean };
  assert.equal(health.healthy, true);
  mirror.close();
});

test('a scrub under a writer repairs what is rotten, and says where two good replicas differ', async (t) => {
  const cluster = await TestCluster.start(t);
  const sizeBytes = 32 * MIB;
  const { nodes, mirror } = await pair(cluster, sizeBytes, 16 * MIB);
  const [a, b] = nodes;
  rot(b, 5 * MIB);
  // A client of one replica alone: both checksums are good, and the content differs.
  const client = await a.open('client', 2, null);
  assert.equal(await client.write(7 * MIB, Buffer.alloc(512, 1)), 0);
  client.close();
  const writer = writeOnAndOn(mirror, 0, 3);
  const scrub = { order: a.order(2, 2), bytesPerSecond: 64 * MIB };
  assert.equal(await cluster.command(b, { scrub }), '');
  assert.equal(await cluster.command(b, { scrub }), '', 'it goes on');
  for (let i = 0; i < 4 && cluster.control.scrubs.length === 0; i++) {
    await eventually('its end', () => cluster.control.scrubs.length > 0).catch(() => undefined);
  }
  const written = await writer.stop();
  const [report] = cluster.control.scrubs;
  assert.deepEqual(report, {
    ...{ nodeId: b.id, volumeId: VOLUME, scannedBytes: 16 * MIB, error: '' },
    ...{ mismatchedRegions: 2, repairedRegions: 1 },
  });
  assert.ok(written > 50, `the writer wrote ${written} times beside it`);
  assert.equal(await b.process!.metric('blockwire_node_scrub_differences_total'), 1);
  assert.match(b.process!.log(), /nobody can tell which one is right/);
  assert.ok((await b.content(2, sizeBytes)).equals(mirror.expected));
  mirror.close();
});
