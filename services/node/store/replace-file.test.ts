/** The descriptor's replacement on a file system that forgets everything unsynced, crashed before each of its calls. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../testing/simulated-io.ts';
import { type FileSystem, replaceFile } from './replace-file.ts';

const DIRECTORY = '/replica';
const PATH = `${DIRECTORY}/descriptor.json`;

class Crash extends Error {}

interface Inode {
  current: Buffer;
  durable: Buffer;
  isSynced: boolean;
}

type Entries = Map<string, Inode>;

/** One directory. A crash keeps any of the unsynced changes of its entries, and any part of unsynced content. */
class ForgetfulFileSystem implements FileSystem {
  calls = 0;
  crashBefore = Number.POSITIVE_INFINITY;
  /** Fails writes once this many bytes are written. */
  spaceBytes = Number.POSITIVE_INFINITY;
  readonly #random: () => number;
  readonly #open = new Map<number, Inode | null>();
  #entries: Entries = new Map();
  #durable: Entries = new Map();
  #changes: ((entries: Entries) => void)[] = [];

  constructor(random: () => number) {
    this.#random = random;
  }

  open(path: string, flags: 'w' | 'r'): number {
    this.#call();
    let inode: Inode | null = null;
    if (flags === 'w') {
      const nothing = Buffer.alloc(0);
      const made = this.#entries.get(path) ?? { current: nothing, durable: nothing, isSynced: false };
      made.current = nothing;
      made.isSynced = false;
      if (!this.#entries.has(path)) this.#change((entries) => entries.set(path, made));
      inode = made;
    }
    this.#open.set(this.calls, inode);
    return this.calls;
  }

  write(fd: number, bytes: Uint8Array): number {
    this.#call();
    const count = Math.min(1 + (this.#random() % bytes.length), this.spaceBytes);
    if (count === 0) throw new Error('ENOSPC');
    this.spaceBytes -= count;
    const inode = this.#open.get(fd)!;
    inode.isSynced = false;
    inode.current = Buffer.concat([inode.current, bytes.subarray(0, count)]);
    return count;
  }

  sync(fd: number): void {
    this.#call();
    const inode = this.#open.get(fd)!;
    if (inode !== null) {
      inode.durable = Buffer.from(inode.current);
      inode.isSynced = true;
      return;
    }
    this.#durable = new Map(this.#entries);
    this.#changes = [];
  }

  close(fd: number): void {
    this.#call();
    this.#open.delete(fd);
  }

  rename(from: string, to: string): void {
    this.#call();
    const inode = this.#entries.get(from)!;
    this.#change((entries) => {
      entries.set(to, inode);
      if (entries.get(from) === inode) entries.delete(from);
    });
  }

  /** What is there now, as a program reads it. */
  read(path: string): string | undefined {
    return this.#entries.get(path)?.current.toString();
  }

  /** The power goes. */
  crash(): void {
    for (const change of this.#changes) if (this.#random() % 2 === 0) change(this.#durable);
    for (const inode of new Set([...this.#durable.values(), ...this.#entries.values()])) {
      // Of unsynced content any part may be there, or what was there before.
      const part = inode.current.subarray(0, this.#random() % (inode.current.length + 1));
      if (!inode.isSynced && this.#random() % 3 !== 0) inode.durable = Buffer.from(part);
      inode.current = Buffer.from(inode.durable);
      inode.isSynced = true;
    }
    this.#entries = new Map(this.#durable);
    this.#changes = [];
    this.#open.clear();
    this.calls = 0;
    this.crashBefore = Number.POSITIVE_INFINITY;
  }

  #change(change: (entries: Entries) => void): void {
    change(this.#entries);
    this.#changes.push(change);
  }

  #call(): void {
    this.calls++;
    if (this.calls >= this.crashBefore) throw new Crash();
  }
}

const descriptor = (epoch: number): string =>
  JSON.stringify({
    version: 2,
    volumeId: 'vol',
    sizeBytes: 2 ** 30,
    generation: epoch,
    epoch,
    snapshot: null,
  });

test('a crash before any call leaves the old or the new descriptor, whole; the new one once it is answered', () => {
  for (let seed = 1; seed <= 2000; seed++) {
    const fs = new ForgetfulFileSystem(seededRandom(seed));
    replaceFile(PATH, descriptor(1), fs);
    let present = descriptor(1);
    // Each round starts from what the crash before it left, a half-written neighbour included.
    for (let epoch = 2; epoch < 8; epoch++) {
      fs.calls = 0;
      fs.crashBefore = 1 + (seed % 20);
      let answered = true;
      try {
        replaceFile(PATH, descriptor(epoch), fs);
      } catch (error) {
        if (!(error instanceof Crash)) throw error;
        answered = false;
      }
      fs.crash();
      const found = fs.read(PATH);
      const allowed = answered ? [descriptor(epoch)] : [present, descriptor(epoch)];
      assert.ok(allowed.includes(found ?? 'nothing'), `seed ${seed}, epoch ${epoch}: found ${found}`);
      present = found!;
    }
  }
});

test('a disk without space for the new descriptor keeps the old one', () => {
  const fs = new ForgetfulFileSystem(seededRandom(7));
  replaceFile(PATH, descriptor(1), fs);
  fs.spaceBytes = 20;
  assert.throws(() => replaceFile(PATH, descriptor(2), fs), /ENOSPC/);
  assert.equal(fs.read(PATH), descriptor(1));
  fs.crash();
  assert.equal(fs.read(PATH), descriptor(1));
  fs.spaceBytes = Number.POSITIVE_INFINITY;
  replaceFile(PATH, descriptor(3), fs);
  fs.crash();
  assert.equal(fs.read(PATH), descriptor(3));
});
