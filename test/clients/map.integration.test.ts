/** What other people's clients see of holes: never written, written, zeroed and discarded ranges. */
import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { client, digest, MIB, qemuIo, serve, writeImage } from './node.ts';

const SIZE = 64 * MIB;
const HOLE_AND_ZERO = 3;

interface MapEntry {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

async function mapOf(uri: string, context = 'base:allocation'): Promise<MapEntry[]> {
  return JSON.parse(await client('nbdinfo', `--map=${context}`, '--json', uri)) as MapEntry[];
}

test('nbdinfo --map: a new volume is one hole', async (t) => {
  const served = await serve(t, { 'vol-a': SIZE });
  const map = await mapOf(served.uri('vol-a'));
  assert.deepEqual(
    map.map(({ offset, length, type }) => [offset, length, type]),
    [[0, SIZE, HOLE_AND_ZERO]],
  );
});

test('nbdinfo --map: what was written is data, what was never written or was discarded is a hole', async (t) => {
  const served = await serve(t, { 'vol-a': SIZE });
  await qemuIo(served.uri('vol-a'), [
    'write -P 1 4M 1M',
    'write -P 2 20000001 1',
    'write -P 3 32M 8M',
    'discard 34M 2M',
    'write -z -u 38M 1M',
  ]);
  const map = await mapOf(served.uri('vol-a'));
  const stateAt = (at: number): number | undefined =>
    map.find(({ offset, length }) => offset <= at && at < offset + length)?.type;
  for (const at of [0, 4 * MIB - 1, 5 * MIB, 10 * MIB, 34 * MIB, 36 * MIB - 1, 38 * MIB, SIZE - 1]) {
    assert.equal(stateAt(at), HOLE_AND_ZERO, `offset ${at}`);
  }
  for (const at of [4 * MIB, 5 * MIB - 1, 20_000_001, 32 * MIB, 37 * MIB, 39 * MIB, 40 * MIB - 1]) {
    assert.equal(stateAt(at), 0, `offset ${at}`);
  }
  // No block is called a hole because of its neighbours.
  assert.ok(map.every(({ offset, length }) => offset % 4096 === 0 && length % 4096 === 0));
});

test('nbdcopy and qemu-img use the holes: copies are sparse, and equal', async (t) => {
  const served = await serve(t, { 'vol-a': SIZE, 'vol-b': SIZE });
  const content = writeImage(served.path('image'), SIZE, 1, [[MIB, 60 * MIB]]);
  await client(
    'qemu-img',
    'convert',
    '-n',
    '-f',
    'raw',
    '-O',
    'raw',
    served.path('image'),
    served.uri('vol-a'),
  );
  const before = await served.node.metric('blockwire_node_read_bytes_total');
  await client('nbdcopy', served.uri('vol-a'), served.path('copy'));
  assert.equal(digest(readFileSync(served.path('copy'))), digest(content));
  assert.ok(statSync(served.path('copy')).blocks * 512 < 8 * MIB, 'the copy is sparse');
  const readBytes = (await served.node.metric('blockwire_node_read_bytes_total')) - before;
  assert.ok(readBytes < 8 * MIB, `holes are not read: ${readBytes} bytes`);
  await client(
    'qemu-img',
    'convert',
    '-n',
    '-f',
    'raw',
    '-O',
    'raw',
    served.uri('vol-a'),
    served.uri('vol-b'),
  );
  await client('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', served.uri('vol-a'), served.uri('vol-b'));
  const [ofA, ofB] = [await mapOf(served.uri('vol-a')), await mapOf(served.uri('vol-b'))];
  const dataBytes = (map: MapEntry[]): number =>
    map.filter(({ type }) => type === 0).reduce((sum, { length }) => sum + length, 0);
  assert.equal(dataBytes(ofA), 4 * MIB);
  assert.equal(dataBytes(ofB), 4 * MIB);
});
