/** All clients at once on one volume, each in its own range or over several connections: nobody sees anybody else's bytes. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { rangeContent } from '../fault/block-content.ts';
import { NbdSession } from '../fault/nbd-session.ts';
import { client, digest, MIB, qemuIo, serve, volumeDigest } from './node.ts';
import { startProxy } from './proxy.ts';

const SLICE = 8 * MIB;
const SLICES = 5;

test('nbdcopy, qemu-img, qemu-io, fio and nbdkit together on one volume', async (t) => {
  const served = await serve(t, { 'vol-a': SLICE * SLICES }, ['--workers', '2']);
  const uri = served.uri('vol-a');
  const proxy = await startProxy(t, served, 'vol-a');
  const expected = Buffer.from(rangeContent(0, SLICE * SLICES, 1));
  const slice = (index: number): Buffer => expected.subarray(index * SLICE, (index + 1) * SLICE);
  const options = (file: string, index: number): string =>
    `driver=raw,offset=${index * SLICE},size=${SLICE},file.driver=nbd,file.server.type=inet,` +
    `file.server.host=${served.node.nbd.split(':')[0]},file.server.port=${served.node.nbd.split(':')[1]},${file}`;

  /** nbdcopy knows no ranges: nbdkit cuts one out, in front of the node. */
  const copySlice = async (index: number): Promise<void> => {
    writeFileSync(served.path('slice-0'), slice(index));
    const plugin = `nbdkit -U - --filter=offset nbd uri=${uri} offset=${index * SLICE} range=${SLICE}`;
    const run = `nbdcopy --connections=4 ${served.path('slice-0')} "$uri" && nbdcopy "$uri" ${served.path('back-0')}`;
    await client('sh', '-c', `${plugin} --run '${run}'`);
    assert.equal(digest(readFileSync(served.path('back-0'))), digest(slice(index)));
  };
  const convertSlice = async (index: number): Promise<void> => {
    writeFileSync(served.path('slice-1'), slice(index));
    const target = options('file.export=vol-a', index);
    await client(
      'qemu-img',
      'convert',
      '-n',
      '-W',
      '-f',
      'raw',
      '--target-image-opts',
      served.path('slice-1'),
      target,
    );
  };
  const scriptSlice = async (index: number): Promise<void> => {
    const at = index * SLICE;
    for (let round = 1; round <= 8; round++) {
      await qemuIo(proxy, [
        `write -P ${round} ${at} ${SLICE}`,
        `write -z ${at + 1000} 5000`,
        `write -f -P 200 ${at + 100_001} 77777`,
        `discard ${at + MIB} 64k`,
        `read -P ${round} ${at} 1000`,
        `read -P 0 ${at + 1000} 5000`,
        `read -P 200 ${at + 100_001} 77777`,
        `read -P 0 ${at + MIB} 64k`,
        `read -P ${round} ${at + 2 * MIB} ${SLICE - 2 * MIB}`,
      ]);
    }
    const mine = slice(index);
    mine
      .fill(8)
      .fill(0, 1000, 6000)
      .fill(200, 100_001, 177_778)
      .fill(0, MIB, MIB + 65536);
  };
  const verifySlice = async (index: number): Promise<void> => {
    await client(
      'fio',
      '--ioengine=nbd',
      `--uri=${uri}`,
      '--name=job',
      `--offset=${index * SLICE}`,
      `--size=${SLICE}`,
      '--rw=randwrite',
      '--bsrange=512-64k',
      '--blockalign=512',
      '--iodepth=16',
      '--loops=3',
      '--verify=crc32c',
      '--verify_fatal=1',
      '--verify_state_save=0',
      `--aux-path=${served.directory}`,
    );
    // What fio leaves is its own: replaced, so that the whole can be compared.
    const session = await NbdSession.open(served.node.nbd, { exportName: 'vol-a', mode: 'extended' });
    for (let at = 0; at < SLICE; at += MIB) {
      const data = slice(index).subarray(at, at + MIB);
      assert.equal((await session.request(nbd.NBD_CMD_WRITE, index * SLICE + at, MIB, { data })).error, 0);
    }
    session.destroy();
  };
  /** Each of several connections reads at once what another wrote: what CAN_MULTI_CONN promises. */
  const passSlice = async (index: number): Promise<void> => {
    const sessions = await Promise.all(
      (['simple', 'structured', 'extended', 'simple'] as const).map((mode) =>
        NbdSession.open(served.node.nbd, { exportName: 'vol-a', mode }),
      ),
    );
    const blocks = SLICE / 65536;
    for (let i = 0; i < blocks; i++) {
      const offset = index * SLICE + i * 65536;
      const data = slice(index).subarray(i * 65536, (i + 1) * 65536);
      const flags = i % 8 === 0 ? nbd.NBD_CMD_FLAG_FUA : 0;
      assert.equal(
        (await sessions[i % 4]!.request(nbd.NBD_CMD_WRITE, offset, 65536, { data, flags })).error,
        0,
      );
      if (i % 16 === 0)
        assert.equal((await sessions[(i + 1) % 4]!.request(nbd.NBD_CMD_FLUSH, 0, 0)).error, 0);
      const read = await sessions[(i + 2) % 4]!.request(nbd.NBD_CMD_READ, offset, 65536);
      assert.ok(data.equals(read.data));
    }
    for (const session of sessions) session.destroy();
  };

  await Promise.all([copySlice(0), convertSlice(1), scriptSlice(2), verifySlice(3), passSlice(4)]);
  assert.equal(await volumeDigest(served, 'vol-a'), digest(expected));
  assert.equal(await served.node.metric('blockwire_node_io_errors_total'), 0);
});
