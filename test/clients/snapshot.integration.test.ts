/** Other people's clients on the export of a snapshot, `volume@snapshot`, while the volume goes on. Needs root: mounts an XFS. */
import assert from 'node:assert/strict';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ReplicaStore } from '@blockwire/node/store/replica-store.ts';
import { createLogger } from '@blockwire/shared/log.ts';
import { StorageNode } from '../fault/storage-node.ts';
import { client, digest, MIB, qemuIo, volumeDigest, writeImage } from './node.ts';
import { startProxy } from './proxy.ts';

const SIZE = 24 * MIB + 512;
const EXPORT = 'vol-a@daily-1';

/** A directory on an XFS of the test's own, and one beside it. */
async function mountXfs(t: TestContext): Promise<{ mounted: string; directory: string }> {
  const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-clients-'));
  const mounted = join(directory, 'xfs');
  t.after(async () => {
    await client('umount', '-l', mounted);
    rmSync(directory, { recursive: true, force: true });
  });
  mkdirSync(mounted);
  const image = join(directory, 'image.xfs');
  closeSync(openSync(image, 'w'));
  truncateSync(image, 512 * MIB);
  await client('mkfs.xfs', '-q', image);
  await client('mount', '-o', 'loop', image, mounted);
  return { mounted, directory };
}

test('a snapshot reads the same with every client, refuses writes, and stays while the volume changes', async (t) => {
  const { mounted, directory } = await mountXfs(t);
  const dataDir = join(mounted, 'node');
  const path = (name: string): string => join(directory, name);
  const start = async () => {
    const node = await StorageNode.start({ dataDir, exports: [`vol-a=${SIZE}`] });
    t.after(() => node.end('SIGKILL'));
    return { node, directory, path, uri: (name: string) => `nbd://${node.nbd}/${name}` };
  };
  const before = await start();
  const content = writeImage(path('image'), SIZE, 3, [[8 * MIB, 8 * MIB]]);
  await client('nbdcopy', path('image'), before.uri('vol-a'));
  await before.node.end('SIGTERM');
  const log = createLogger('test');
  log.level = 'silent';
  const store = new ReplicaStore({ directory: dataDir, capacityBytes: null, bootId: 'boot', log });
  await store.createSnapshot('vol-a', 'daily-1', true);
  store.close();

  const served = await start();
  const snapshot = served.uri(EXPORT);
  await qemuIo(served.uri('vol-a'), ['write -P 9 0 4M', 'discard 16M 4M', 'flush']);

  const info = JSON.parse(await client('nbdinfo', '--json', snapshot)) as {
    exports: { 'export-size': number; is_read_only: boolean }[];
  };
  assert.deepEqual(
    info.exports.map((found) => [found['export-size'], found.is_read_only]),
    [[SIZE, true]],
  );
  const map = JSON.parse(await client('nbdinfo', '--map', '--json', snapshot)) as {
    offset: number;
    length: number;
    type: number;
  }[];
  assert.deepEqual(
    map.map(({ offset, length, type }) => [offset, length, type]),
    [
      [0, 8 * MIB, 0],
      [8 * MIB, 8 * MIB, 3],
      [16 * MIB, SIZE - 16 * MIB, 0],
    ],
  );
  assert.equal(await volumeDigest(served, EXPORT), digest(content), 'nbdcopy');
  await client('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', snapshot, path('converted'));
  assert.equal(digest(readFileSync(path('converted'))), digest(content), 'qemu-img convert');
  await client('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', path('image'), snapshot);
  const proxy = await startProxy(t, served, EXPORT);
  await client('nbdcopy', proxy, path('through'));
  assert.equal(digest(readFileSync(path('through'))), digest(content), 'through nbdkit');
  await qemuIo(snapshot, ['read -P 0 8M 8M', 'read 12345 70000'], ['-r']);
  await client(
    ...['fio', '--name=read', '--ioengine=nbd', `--uri=${snapshot}`, '--rw=randread', '--bs=4k'],
    ...['--iodepth=16', '--size=16m'],
  );
  await assert.rejects(client('nbdcopy', path('image'), snapshot), 'a copy onto it is refused');
  assert.notEqual(await volumeDigest(served, 'vol-a'), digest(content), 'the volume has gone on');
  assert.equal(await volumeDigest(served, EXPORT), digest(content), 'and the snapshot has not');
});
