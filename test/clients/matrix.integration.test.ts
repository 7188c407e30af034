/** Each of other people's NBD clients against a node, by the content that arrives. Debian: libnbd-bin, qemu-utils, fio, nbdkit. */
import assert from 'node:assert/strict';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { client, digest, MIB, qemuIo, serve, volumeDigest, writeImage } from './node.ts';
import { startProxy } from './proxy.ts';

const SIZE = 24 * MIB;
/** Ends in the middle of a block, and of a sector. */
const ODD_SIZE = 8 * MIB + 1234;

interface Export {
  readonly 'export-name': string;
  readonly 'export-size': number;
  readonly [capability: string]: unknown;
}

describe('nbdinfo', () => {
  it('--json: size, block sizes and what the server can do', async (t) => {
    const served = await serve(t, { 'vol-a': ODD_SIZE });
    const info = JSON.parse(await client('nbdinfo', '--json', served.uri('vol-a'))) as { exports: Export[] };
    const [found] = info.exports;
    assert.ok(found);
    assert.equal(found['export-size'], ODD_SIZE);
    assert.equal(found.is_read_only, false);
    assert.equal(found.is_rotational, false);
    for (const can of ['flush', 'fua', 'multi_conn', 'trim', 'zero', 'fast_zero', 'df', 'cache']) {
      assert.equal(found[`can_${can}`], true, can);
    }
    assert.equal(found.block_size_minimum, 1);
    assert.equal(found.block_size_preferred, 4096);
    assert.ok((found.contexts as string[]).includes('base:allocation'));
  });

  it('--list: every export', async (t) => {
    const served = await serve(t, { 'vol-a': MIB, 'vol-b': 2 * MIB, 'vol-c': 4096 });
    const list = JSON.parse(await client('nbdinfo', '--list', '--json', `nbd://${served.node.nbd}`)) as {
      exports: Export[];
    };
    const sizes = list.exports.map((found) => [found['export-name'], found['export-size']]);
    assert.deepEqual(Object.fromEntries(sizes), { 'vol-a': MIB, 'vol-b': 2 * MIB, 'vol-c': 4096 });
  });

  it('--map: extents without gaps to the end of the volume', async (t) => {
    const served = await serve(t, { 'vol-a': ODD_SIZE });
    await qemuIo(served.uri('vol-a'), ['write -P 1 1M 64k', 'write -P 2 8388608 1234']);
    const map = JSON.parse(await client('nbdinfo', '--map', '--json', served.uri('vol-a'))) as {
      offset: number;
      length: number;
    }[];
    let end = 0;
    for (const { offset, length } of map) {
      assert.equal(offset, end);
      end += length;
    }
    assert.equal(end, ODD_SIZE);
  });
});

describe('nbdcopy', () => {
  for (const [name, sizeBytes] of [
    ['whole blocks', SIZE],
    ['an odd size', ODD_SIZE],
  ] as const) {
    it(`there and back, ${name}, one connection and four`, async (t) => {
      const served = await serve(t, { 'vol-a': sizeBytes, 'vol-b': sizeBytes });
      const content = writeImage(served.path('image'), sizeBytes, 1, [[MIB, 3 * MIB]]);
      await client('nbdcopy', '--connections=4', served.path('image'), served.uri('vol-a'));
      await client('nbdcopy', '--connections=1', '--no-extents', served.uri('vol-a'), served.path('back'));
      assert.equal(digest(readFileSync(served.path('back'))), digest(content));
      await client('nbdcopy', '--synchronous', served.uri('vol-a'), served.uri('vol-b'));
      assert.equal(await volumeDigest(served, 'vol-b'), digest(content));
    });
  }

  it('over old content, with zeroes and holes to be written', async (t) => {
    const served = await serve(t, { 'vol-a': SIZE });
    writeImage(served.path('old'), SIZE, 1);
    await client('nbdcopy', '--flush', served.path('old'), served.uri('vol-a'));
    const image = writeImage(served.path('new'), SIZE, 2, [
      [0, 5000],
      [2 * MIB, 9 * MIB],
    ]);
    truncateSync(served.path('new'), SIZE - 3 * MIB);
    truncateSync(served.path('new'), SIZE);
    image.fill(0, SIZE - 3 * MIB);
    await client('nbdcopy', '--allocated', served.path('new'), served.uri('vol-a'));
    assert.equal(await volumeDigest(served, 'vol-a'), digest(image));
    writeImage(served.path('old'), SIZE, 3);
    await client('nbdcopy', served.path('old'), served.uri('vol-a'));
    await client('nbdcopy', served.path('new'), served.uri('vol-a'));
    assert.equal(await volumeDigest(served, 'vol-a'), digest(image));
  });
});

describe('qemu-img', () => {
  it('convert there and back, compare, map', async (t) => {
    const served = await serve(t, { 'vol-a': SIZE, 'vol-b': SIZE });
    const content = writeImage(served.path('image'), SIZE, 4, [[4 * MIB, 6 * MIB]]);
    const raw = ['-f', 'raw', '-O', 'raw'];
    await client('qemu-img', 'convert', '-n', ...raw, served.path('image'), served.uri('vol-a'));
    await client('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', served.path('image'), served.uri('vol-a'));
    await client(
      'qemu-img',
      'convert',
      '-n',
      '-W',
      '-m',
      '8',
      ...raw,
      served.uri('vol-a'),
      served.uri('vol-b'),
    );
    assert.equal(await volumeDigest(served, 'vol-b'), digest(content));
    await client('qemu-img', 'convert', ...raw, served.uri('vol-b'), served.path('back'));
    assert.equal(digest(readFileSync(served.path('back'))), digest(content));
    // What qemu calls zero must be zero, and nothing else may be called so.
    const map = JSON.parse(
      await client('qemu-img', 'map', '--output=json', '-f', 'raw', served.uri('vol-a')),
    ) as {
      start: number;
      length: number;
      zero: boolean;
    }[];
    let end = 0;
    for (const { start, length, zero } of map) {
      assert.equal(start, end);
      end += length;
      if (zero) assert.ok(content.subarray(start, end).every((byte) => byte === 0));
    }
    assert.equal(end, SIZE);
    await qemuIo(served.uri('vol-a'), ['write -P 9 12M 1']);
    await assert.rejects(
      client('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', served.path('image'), served.uri('vol-a')),
      /mismatch at offset 12582912/,
    );
  });

  it('qcow2 inside a volume', async (t) => {
    const served = await serve(t, { 'vol-a': 2 * SIZE });
    const content = writeImage(served.path('image'), SIZE, 5, [[MIB, 8 * MIB]]);
    await client('qemu-img', 'create', '-f', 'qcow2', served.uri('vol-a'), String(SIZE));
    await client(
      'qemu-img',
      'convert',
      '-n',
      '-f',
      'raw',
      '-O',
      'qcow2',
      served.path('image'),
      served.uri('vol-a'),
    );
    await client('qemu-img', 'check', '-f', 'qcow2', served.uri('vol-a'));
    await client('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', served.uri('vol-a'), served.path('back'));
    assert.equal(digest(readFileSync(served.path('back'))), digest(content));
  });
});

describe('qemu-io', () => {
  it('write zeroes, discard, misaligned sizes, FUA, flush', async (t) => {
    const served = await serve(t, { 'vol-a': ODD_SIZE });
    await qemuIo(served.uri('vol-a'), [
      'write -P 0x11 0 4M',
      'write -f -P 0x22 513 7001',
      'read -P 0x11 0 513',
      'read -P 0x22 513 7001',
      'read -P 0x11 7514 100000',
      'write -z 1000 9000',
      'read -P 0 1000 9000',
      'read -P 0x22 513 487',
      'read -P 0x11 10000 4096',
      'write -z -u 1M 1M',
      'read -P 0 1M 1M',
      'write -z -f 2097153 4095',
      'read -P 0 2097153 4095',
      'read -P 0x11 2097152 1',
      'discard 3M 512k',
      'read -P 0 3M 512k',
      'read -P 0x11 3670016 512k',
      'write -P 0x33 3145729 4094',
      'read -P 0 3145728 1',
      'read -P 0x33 3145729 4094',
      'read -P 0 3149823 1',
      `write -P 0x44 ${ODD_SIZE - 5000} 5000`,
      `read -P 0x44 ${ODD_SIZE - 5000} 5000`,
      `write -z ${ODD_SIZE - 10} 10`,
      `read -P 0 ${ODD_SIZE - 10} 10`,
      'flush',
    ]);
    // Beyond the end: refused, and nothing is written.
    await assert.rejects(
      qemuIo(served.uri('vol-a'), [`write -P 1 ${ODD_SIZE - 10} 512`]),
      /Input\/output|Invalid|space/,
    );
  });

  it('many requests at once, overlapping ones in their order', async (t) => {
    const served = await serve(t, { 'vol-a': SIZE });
    // qemu sends no more than sixteen at once, and those that wait for their turn in no order.
    const batch = Array.from({ length: 16 }, (_, i) => i);
    for (const base of [0, 100, 200]) {
      const at = (i: number): number => base * 4096 + i * 3000;
      await qemuIo(served.uri('vol-a'), [
        ...batch.map((i) => `aio_write -P ${base / 10 + i + 1} ${at(i)} 9000`),
        'aio_flush',
        ...batch.map((i) => `read -P ${base / 10 + i + 1} ${at(i)} ${i < 15 ? 3000 : 9000}`),
      ]);
    }
  });
});

describe('fio', () => {
  it('nbd engine, mixed sizes, trims, several jobs: everything verified', async (t) => {
    const served = await serve(t, { 'vol-a': SIZE });
    const job = (index: number, ...more: string[]): string[] => [
      `--name=job${index}`,
      `--offset=${index * 8 * MIB}`,
      '--size=8m',
      ...more,
    ];
    const output = await client(
      'fio',
      '--ioengine=nbd',
      `--uri=${served.uri('vol-a')}`,
      '--iodepth=16',
      '--verify=crc32c',
      '--verify_fatal=1',
      '--verify_state_save=0',
      '--fsync=64',
      `--aux-path=${served.directory}`,
      ...job(0, '--rw=randwrite', '--bsrange=512-64k', '--blockalign=512'),
      ...job(1, '--rw=randwrite', '--bs=4k', '--verify_backlog=256'),
      ...job(2, '--rw=write', '--bs=512k'),
    );
    assert.doesNotMatch(output, /verify:|bad magic/);
    assert.equal([...output.matchAll(/err= 0/g)].length, 3);
  });
});

describe("nbdkit's nbd plugin", () => {
  it('as a proxy: what goes in through it is there without it, and back', async (t) => {
    const served = await serve(t, { 'vol-a': ODD_SIZE });
    const proxy = await startProxy(t, served, 'vol-a');
    const content = writeImage(served.path('image'), ODD_SIZE, 6, [[2 * MIB, MIB]]);
    await client('nbdcopy', served.path('image'), proxy);
    assert.equal(await volumeDigest(served, 'vol-a'), digest(content));
    await client('nbdcopy', proxy, served.path('back'));
    assert.equal(digest(readFileSync(served.path('back'))), digest(content));
    await qemuIo(proxy, ['write -z -u 1M 1M', 'discard 4M 64k', 'write -f -P 5 100 4097', 'flush']);
    content.fill(0, MIB, 2 * MIB).fill(0, 4 * MIB, 4 * MIB + 65536);
    content.fill(5, 100, 4197);
    assert.equal(await volumeDigest(served, 'vol-a'), digest(content));
    writeFileSync(served.path('image'), content);
    await client('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', served.path('image'), proxy);
  });

  it('shows the same capabilities and size', async (t) => {
    const served = await serve(t, { 'vol-a': ODD_SIZE });
    const proxy = await startProxy(t, served, 'vol-a');
    const [direct, through] = await Promise.all(
      [served.uri('vol-a'), proxy].map(async (uri) => {
        const info = JSON.parse(await client('nbdinfo', '--json', uri)) as { exports: Export[] };
        return info.exports[0]!;
      }),
    );
    for (const key of ['export-size', 'is_read_only', 'can_multi_conn', 'can_trim', 'can_fua', 'can_cache']) {
      assert.equal(through![key], direct![key], key);
    }
  });
});
