/**
 * A crash after every single disk operation of a script, on a simulated disk that loses or tears what was not synced; then
 * recovery as at a start. What was flushed must be there, and no block may fail its checksum.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { native } from '@blockwire/native/native.ts';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { Stat } from '../data/stats.ts';
import { checksumFileSizeOf } from '../store/checksum-file.ts';
import { recomputeDirtyRegions } from '../store/recompute.ts';
import { RegionTable, regionFileSizeOf } from '../store/region-table.ts';
import type { SimulatedSocket } from '../testing/simulated-io.ts';
import {
  CHECKSUMS_FD,
  FD,
  feed,
  type Harness,
  harness,
  INSTALLED,
  MIB,
  open,
  REGIONS_FD,
  regionsOf,
  replies,
  request,
} from '../testing/worker-harness.ts';

const SIZE = 3 * MIB + 777;
const GROWN = 4 * MIB + 4096;
const SECTOR = 512;

/** Thrown where the crash is. */
class Crash extends Error {}

/** What each sector may hold: everything it was since the last flush that was answered. */
class Model {
  content: Buffer;
  /** By sector: versions before the present one. */
  readonly older = new Map<number, Buffer[]>();
  epoch = 1;
  epochInstalled = 1;
  sizeBytes = SIZE;

  constructor() {
    this.content = Buffer.alloc(4 * 4096 + GROWN);
  }

  write(offset: number, data: Uint8Array): void {
    const first = Math.floor(offset / SECTOR);
    const last = Math.floor((offset + data.length - 1) / SECTOR);
    for (let sector = first; sector <= last; sector++) {
      const versions = this.older.get(sector) ?? [];
      versions.push(Buffer.from(this.content.subarray(sector * SECTOR, (sector + 1) * SECTOR)));
      this.older.set(sector, versions);
    }
    this.content.set(data, offset);
  }

  flushed(): void {
    this.older.clear();
  }

  allows(sector: number, found: Buffer): boolean {
    const present = this.content.subarray(sector * SECTOR, sector * SECTOR + found.length);
    if (present.equals(found)) return true;
    return (this.older.get(sector) ?? []).some((version) => version.subarray(0, found.length).equals(found));
  }
}

interface Run {
  readonly h: Harness;
  readonly model: Model;
}

/** The script; `crashAfter` counts disk operations, Infinity runs it to its end. */
function runScript(seed: number, crashAfter: number): Run {
  const h = harness(seed, { sizeBytes: SIZE, canZeroRange: seed % 2 === 0 });
  const model = new Model();
  const step = h.io.step.bind(h.io);
  h.io.step = () => {
    if (h.io.diskCount >= crashAfter) throw new Crash();
    return step();
  };
  try {
    script(h, model, open(h));
  } catch (error) {
    if (!(error instanceof Crash)) throw error;
  }
  return { h, model };
}

function script(h: Harness, model: Model, socket: SimulatedSocket): void {
  let cookie = 0;
  let nowMs = 0;
  const end = (): void => {
    h.settle();
    for (const { error } of replies(socket, new Map()).values()) assert.equal(error, 0);
    socket.outbound = Buffer.alloc(0);
  };
  const write = (offset: number, length: number, flags = 0): void => {
    const data = Buffer.alloc(length, 1 + (h.random() % 255));
    model.write(offset, data);
    feed(socket, request(nbd.NBD_CMD_WRITE, ++cookie, offset, length, flags), data);
  };
  const zero = (type: number, offset: number, length: number, flags = 0): void => {
    // A trim leaves parts of blocks alone.
    const first = type === nbd.NBD_CMD_TRIM ? Math.ceil(offset / 4096) * 4096 : offset;
    const last = type === nbd.NBD_CMD_TRIM ? Math.floor((offset + length) / 4096) * 4096 : offset + length;
    model.write(first, Buffer.alloc(last - first));
    feed(socket, request(type, ++cookie, offset, length, flags));
  };
  const flush = (): void => {
    end();
    feed(socket, request(nbd.NBD_CMD_FLUSH, ++cookie, 0, 0));
    end();
    model.flushed();
  };
  const idle = (): void => {
    for (let i = 0; i < 80; i++) {
      nowMs += 100;
      h.server.onTick(nowMs);
      end();
    }
  };
  write(0, 8192);
  write(MIB - 4096, 12_288);
  write(4096, 8192);
  flush();
  write(100, 50);
  write(5000, 9000);
  write(MIB + 3, 4096, nbd.NBD_CMD_FLAG_FUA);
  end();
  zero(nbd.NBD_CMD_WRITE_ZEROES, 4000, 10_000);
  write(2 * MIB, 65_536);
  end();
  zero(nbd.NBD_CMD_TRIM, 2 * MIB + 100, 20_000);
  flush();
  idle();
  write(0, 4096);
  write(3 * MIB, 777);
  zero(nbd.NBD_CMD_WRITE_ZEROES, 3 * MIB + 700, 77, nbd.NBD_CMD_FLAG_NO_HOLE);
  end();
  model.epoch = 7;
  const installed = { ...INSTALLED, epoch: 7 };
  h.server.onMessage({ type: 'install', request: 50, id: 'vol', installed, cut: 'none' });
  h.settle();
  assert.ok(h.posted.some((message) => message.type === 'done' && message.request === 50));
  model.epochInstalled = 7;
  const durable = new RegionTable(SIZE, regionsOf(h.io.crash()));
  for (const region of durable.intents())
    assert.equal(durable.epochOf(region), 7, 'tagged before it is answered');
  write(MIB, 4096);
  flush();
  h.io.growFile(FD, Math.ceil(GROWN / 4096) * 4096);
  h.io.growFile(CHECKSUMS_FD, checksumFileSizeOf(GROWN));
  h.io.growFile(REGIONS_FD, regionFileSizeOf(GROWN));
  model.sizeBytes = GROWN;
  h.server.onMessage({ type: 'resize', request: 51, id: 'vol', sizeBytes: GROWN });
  write(4 * MIB - 4096, 8192);
  write(SIZE - 300, 600);
  end();
  idle();
  zero(nbd.NBD_CMD_TRIM, 0, GROWN);
  flush();
}

async function recover(images: Map<number, Buffer>, sizeBytes: number): Promise<void> {
  const file = images.get(REGIONS_FD)!;
  const table = new RegionTable(sizeBytes, regionsOf(images));
  const data = images.get(FD)!;
  const sums = images.get(CHECKSUMS_FD)!;
  await recomputeDirtyRegions({
    table,
    checksums: new Uint32Array(sums.buffer, sums.byteOffset, sums.length / 4),
    dataSizeBytes: Math.ceil(sizeBytes / 4096) * 4096,
    readRegion: async (offset, length) => data.subarray(offset, offset + length),
    checksumBlocks: (bytes, count, out) => {
      for (let i = 0; i < count; i++) out[i] = native.crc32c(bytes.subarray(i * 4096, (i + 1) * 4096), 0);
    },
  });
  Buffer.from(table.words.buffer).copy(file, 4096);
}

/** Everything through the server, as a client reads it. */
function readAll(h: Harness, sizeBytes: number): Buffer {
  const socket = open(h);
  const pieces: Buffer[] = [];
  for (let at = 0; at < sizeBytes; at += 65_536) {
    const length = Math.min(65_536, sizeBytes - at);
    feed(socket, request(nbd.NBD_CMD_READ, 1, at, length));
    h.settle();
    const reply = replies(socket, new Map([[1, length]])).get(1)!;
    assert.equal(reply.error, 0, `the read at ${at} fails`);
    pieces.push(Buffer.from(reply.data));
    socket.outbound = Buffer.alloc(0);
  }
  return Buffer.concat(pieces);
}

async function verify({ h, model }: Run, where: string): Promise<void> {
  const images = h.io.crash();
  const { sizeBytes } = model;
  const before = new RegionTable(sizeBytes, regionsOf(images));
  await recover(images, sizeBytes);
  const again = harness(1, { sizeBytes, images, installed: { ...INSTALLED, epoch: model.epochInstalled } });
  const content = readAll(again, sizeBytes);
  assert.equal(again.stats[Stat.checksumErrors], 0, where);
  for (let at = 0; at < sizeBytes; at += SECTOR) {
    const found = content.subarray(at, Math.min(at + SECTOR, sizeBytes));
    if (!model.allows(at / SECTOR, found))
      assert.fail(`${where}: the sector at ${at} holds what it never held`);
  }
  for (let region = 0; region < before.count; region++) {
    const bytes = content.subarray(region * MIB, (region + 1) * MIB);
    if (bytes.every((byte) => byte === 0)) continue;
    assert.ok(before.hasIntent(region), `${where}: region ${region} was written without an intent`);
    assert.ok(before.epochOf(region) >= model.epochInstalled, `${where}: region ${region} lacks its epoch`);
    assert.ok(before.epochOf(region) <= model.epoch, where);
  }
}

test('a crash after any disk operation: what was flushed is there, every block matches its checksum', async () => {
  for (let seed = 1; seed <= 6; seed++) {
    const all = runScript(seed, Number.POSITIVE_INFINITY);
    const total = all.h.io.diskCount;
    assert.ok(total > 40, 'the script does something');
    await verify(all, `seed ${seed}, at the end`);
    for (let crashAfter = 1; crashAfter < total; crashAfter++) {
      await verify(runScript(seed, crashAfter), `seed ${seed}, after operation ${crashAfter} of ${total}`);
    }
  }
});

test('idle regions are cleaned, and a checkpoint clears what was flushed', () => {
  const h = harness(3, { sizeBytes: SIZE });
  const socket = open(h);
  feed(socket, request(nbd.NBD_CMD_WRITE, 1, 0, 4096), Buffer.alloc(4096, 1));
  feed(socket, request(nbd.NBD_CMD_WRITE, 2, 2 * MIB, 4096), Buffer.alloc(4096, 1));
  h.settle();
  const flags = (): number[] => {
    const table = new RegionTable(SIZE, regionsOf(h.io.files));
    return [0, 1, 2, 3].map((region) => table.flagsOf(region));
  };
  assert.deepEqual(flags(), [3, 0, 3, 0]);
  for (let i = 1; i <= 40; i++) {
    h.server.onTick(i * 100);
    h.settle();
  }
  feed(socket, request(nbd.NBD_CMD_WRITE, 3, 2 * MIB, 4096), Buffer.alloc(4096, 2));
  for (let i = 41; i <= 60; i++) {
    h.settle();
    h.server.onTick(i * 100);
  }
  h.settle();
  assert.deepEqual(flags(), [2, 0, 3, 0], 'only what has not been written for five seconds');
  h.server.onMessage({ type: 'checkpoint', request: 60, id: 'vol' });
  h.settle();
  assert.deepEqual(flags(), [0, 0, 1, 0]);
  feed(socket, request(nbd.NBD_CMD_WRITE, 4, 0, 4096), Buffer.alloc(4096, 3));
  h.settle();
  assert.deepEqual(flags(), [3, 0, 1, 0], 'the next write marks it again');
  assert.equal(replies(socket, new Map()).get(4)?.error, 0);
});
