/** Who gets in: capabilities, generations, epochs, attempts; and what a session that was cut can still do: nothing. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import {
  type CapabilityMode,
  CapabilitySigner,
  generateCapabilityKey,
} from '@blockwire/shared/capability.ts';
import { addSession } from '@blockwire/shared/export-name.ts';
import type { Installed } from '../replication/admission.ts';
import { REGION_INTENT } from '../store/region-table.ts';
import type { SimulatedSocket } from '../testing/simulated-io.ts';
import {
  FD,
  feed,
  type Harness,
  harness,
  INSTALLED,
  MIB,
  open,
  regionsOf,
  replies,
  request,
} from '../testing/worker-harness.ts';

const NOW = 1_000_000;
const signer = new CapabilitySigner(generateCapabilityKey());
const stranger = new CapabilitySigner(generateCapabilityKey());
const MEMBER: Installed = { ...INSTALLED, generation: 5, epoch: 7, joinedEpoch: 3 };

interface Said {
  readonly mode: CapabilityMode;
  readonly generation?: number;
  readonly epoch?: number | null;
  readonly attempt?: number;
  readonly link?: string;
}

function cluster(seed: number, installed: Installed = MEMBER): Harness {
  const h = harness(seed, { sizeBytes: 2 * MIB, installed, nowSeconds: () => NOW });
  h.server.onMessage({ type: 'trust', request: 3, key: signer.publicKey });
  return h;
}

function nameOf(
  said: Said,
  options: { signed?: CapabilitySigner; volumeId?: string; expiresAt?: number } = {},
): string {
  const { signed = signer, volumeId = 'vol', expiresAt = NOW + 1 } = options;
  const { mode, generation = 5, epoch = 7, link = null, attempt = null } = said;
  return addSession(`vol?cap=${signed.sign({ volumeId, generation, mode, expiresAt })}`, {
    epoch,
    link,
    attempt,
  });
}

function install(h: Harness, installed: Installed, cut: 'none' | 'olderGenerations' | 'all'): void {
  h.server.onMessage({ type: 'install', request: 9, id: 'vol', installed, cut });
}

function isAnswered(h: Harness): boolean {
  return h.posted.some((message) => message.type === 'done' && message.request === 9);
}

function write(socket: SimulatedSocket, cookie: number, offset: number, fill: number): void {
  feed(socket, request(nbd.NBD_CMD_WRITE, cookie, offset, 4096), Buffer.alloc(4096, fill));
}

function content(h: Harness, offset: number): number {
  return h.io.files.get(FD)![offset]!;
}

test('a node in a cluster lets in who has a capability for what is installed, and says why not', () => {
  const h = cluster(1);
  const refused: readonly [string, RegExp][] = [
    ['vol', /BW_CAPABILITY_INVALID/],
    ['vol?epoch=7', /BW_CAPABILITY_INVALID/],
    [nameOf({ mode: 'writer' }, { signed: stranger }), /BW_CAPABILITY_INVALID/],
    [nameOf({ mode: 'writer' }, { expiresAt: NOW }), /BW_CAPABILITY_INVALID/],
    [nameOf({ mode: 'writer' }, { volumeId: 'vol-2' }), /BW_CAPABILITY_INVALID/],
    [nameOf({ mode: 'writer', generation: 4 }), /BW_GENERATION_OLD/],
    [nameOf({ mode: 'client', generation: 4 }), /BW_GENERATION_OLD/],
    [nameOf({ mode: 'writer', generation: 6 }), /BW_CONFLICT/],
    [nameOf({ mode: 'writer', epoch: 6 }), /BW_EPOCH_OLD/],
    [nameOf({ mode: 'peer', epoch: 8 }), /BW_CONFLICT/],
    [nameOf({ mode: 'writer', epoch: null }), /BW_INVALID_ARGUMENT/],
    ['vol?cap=', /BW_INVALID_ARGUMENT/],
    ['vol-9', /BW_NOT_FOUND/],
  ];
  for (const [name, code] of refused) assert.throws(() => open(h, name), code, name);
  for (const mode of ['writer', 'client'] as const) {
    const socket = open(h, nameOf({ mode }));
    write(socket, 1, 0, 7);
    h.settle();
    assert.equal(replies(socket, new Map()).get(1)!.error, nbd.NBD_OK, mode);
  }
  for (const mode of ['peer', 'reader'] as const) {
    const socket = open(h, nameOf({ mode }));
    write(socket, 1, 0, 8);
    feed(socket, request(nbd.NBD_CMD_READ, 2, 0, 512));
    h.settle();
    const found = replies(socket, new Map([[2, 512]]));
    assert.equal(found.get(1)!.error, nbd.NBD_EPERM, mode);
    assert.deepEqual(found.get(2)!.data, Buffer.alloc(512, 7), mode);
  }
});

test("a replica being rebuilt is the writer's alone, an unclean one nobody's", () => {
  const rebuilding = cluster(2, { ...MEMBER, role: 'rebuilding' });
  open(rebuilding, nameOf({ mode: 'writer' }));
  for (const mode of ['peer', 'client', 'reader'] as const) {
    assert.throws(() => open(rebuilding, nameOf({ mode })), /BW_CONFLICT/, mode);
  }
  const unclean = cluster(2, { ...MEMBER, uncleanEpoch: 7 });
  assert.throws(() => open(unclean, nameOf({ mode: 'writer' })), /BW_REPLICA_DAMAGED/);
});

test('without a cluster bare names work as ever, and capabilities mean nothing', () => {
  const h = harness(3);
  const socket = open(h);
  write(socket, 1, 0, 7);
  h.settle();
  assert.equal(replies(socket, new Map()).get(1)!.error, nbd.NBD_OK);
  assert.throws(() => open(h, nameOf({ mode: 'writer' })), /BW_CAPABILITY_INVALID/);
});

test("a new generation: nothing that is still in the old one's sockets takes effect, and it waits for what is on the disk", () => {
  for (let seed = 0; seed < 50; seed++) {
    const h = cluster(seed);
    const old = open(h, nameOf({ mode: 'writer' }));
    write(old, 1, 0, 1);
    h.settle();
    h.io.stuck.add(FD);
    write(old, 2, 4096, 2);
    h.settle();
    // In the socket buffer; and half of a request.
    write(old, 3, 8192, 3);
    feed(old, request(nbd.NBD_CMD_WRITE, 4, 12_288, 4096), Buffer.alloc(100, 4));
    install(h, { ...MEMBER, generation: 6, epoch: 8 }, 'olderGenerations');
    h.settle();
    assert.equal(isAnswered(h), false, 'a write of the old one is at work');
    h.io.stuck.clear();
    h.settle();
    assert.equal(isAnswered(h), true);
    const fresh = open(h, nameOf({ mode: 'writer', generation: 6, epoch: 8 }));
    write(fresh, 5, 4096, 9);
    feed(old, Buffer.alloc(8000, 4));
    h.settle();
    assert.deepEqual(
      [0, 4096, 8192, 12_288].map((offset) => content(h, offset)),
      [1, 9, 0, 0],
    );
    assert.throws(() => open(h, nameOf({ mode: 'writer' })), /BW_GENERATION_OLD/);
  }
});

test('a new rebuild cuts its own generation too; an epoch alone cuts nobody', () => {
  const h = cluster(4);
  const writer = open(h, nameOf({ mode: 'writer' }));
  install(h, { ...MEMBER, epoch: 8 }, 'none');
  write(writer, 1, 0, 1);
  h.settle();
  assert.equal(content(h, 0), 1);
  install(h, { ...MEMBER, epoch: 9, role: 'rebuilding', joinedEpoch: 9 }, 'all');
  write(writer, 2, 0, 2);
  h.settle();
  assert.equal(content(h, 0), 1);
});

test('a higher attempt of a link ends the lower ones, and begins when nothing of theirs is at work', () => {
  for (let seed = 0; seed < 50; seed++) {
    const h = cluster(seed);
    const at = (attempt: number, link = 'agent/a/0'): string => nameOf({ mode: 'writer', link, attempt });
    const old = [open(h, at(1)), open(h, at(1))];
    const other = open(h, at(1, 'agent/a/1'));
    write(old[0]!, 1, 0, 1);
    h.settle();
    h.io.stuck.add(FD);
    write(old[0]!, 2, 0, 2);
    h.settle();
    write(old[1]!, 3, 0, 3);
    const fresh = open(h, at(2));
    const beside = open(h, at(2));
    write(fresh, 4, 0, 4);
    write(fresh, 5, 4096, 5);
    write(beside, 6, 8192, 6);
    h.settle();
    assert.throws(() => open(h, at(1)), /BW_CONFLICT/);
    h.io.stuck.clear();
    h.settle();
    write(old[1]!, 7, 0, 7);
    write(other, 8, 12_288, 8);
    h.settle();
    assert.deepEqual(
      [0, 4096, 8192, 12_288].map((offset) => content(h, offset)),
      [4, 5, 6, 8],
      `seed ${seed}`,
    );
    assert.equal(replies(fresh, new Map()).size, 2);
  }
});

test('not one byte of the new attempt is taken before the old one is over', () => {
  const h = cluster(5);
  const link = 'agent/a/0';
  const old = open(h, nameOf({ mode: 'writer', link, attempt: 1 }));
  h.io.stuck.add(FD);
  write(old, 1, 0, 1);
  h.settle();
  const fresh = open(h, nameOf({ mode: 'writer', link, attempt: 2 }));
  feed(fresh, request(nbd.NBD_CMD_READ, 2, 4096, 512));
  h.settle();
  assert.equal(fresh.inbound.length, 28);
  h.io.stuck.clear();
  h.settle();
  assert.equal(fresh.inbound.length, 0);
});

test('CHECKPOINT clears the intents of what was written before its mark, and only a writer may send it', () => {
  const h = cluster(6);
  const writer = open(h, nameOf({ mode: 'writer' }));
  const client = open(h, nameOf({ mode: 'client' }));
  const intents = (): number[] =>
    [0, 1].filter((region) => (regionsOf(h.io.files)[region * 2 + 1]! & REGION_INTENT) !== 0);
  const send = (
    socket: SimulatedSocket,
    type: number,
    cookie: number,
    mark: number,
    epoch: number,
  ): number => {
    feed(socket, request(type, cookie, mark, epoch));
    h.settle();
    return replies(socket, new Map()).get(cookie)!.error;
  };
  const { NBD_CMD_BLOCKWIRE_MARK: MARK, NBD_CMD_BLOCKWIRE_CHECKPOINT: CHECKPOINT } = nbd;
  write(writer, 1, 0, 1);
  h.settle();
  assert.equal(send(client, MARK, 1, 1, 7), nbd.NBD_EINVAL);
  assert.equal(send(writer, CHECKPOINT, 2, 1, 7), nbd.NBD_OK);
  assert.deepEqual(intents(), [0], 'no mark has come before it');
  assert.equal(send(writer, MARK, 3, 1, 7), nbd.NBD_OK);
  write(writer, 4, MIB, 1);
  h.settle();
  assert.deepEqual(intents(), [0, 1]);
  assert.equal(send(writer, CHECKPOINT, 5, 1, 6), nbd.NBD_OK);
  assert.deepEqual(intents(), [0, 1], 'of another epoch');
  assert.equal(send(writer, CHECKPOINT, 6, 1, 7), nbd.NBD_OK);
  assert.deepEqual(intents(), [1], 'written behind the mark');
  assert.equal(send(writer, MARK, 7, 2, 7), nbd.NBD_OK);
  assert.equal(send(writer, CHECKPOINT, 8, 2, 7), nbd.NBD_OK);
  assert.deepEqual(intents(), []);
  write(writer, 9, 0, 2);
  h.settle();
  assert.deepEqual(intents(), [0], 'the next write has an intent again');
});
