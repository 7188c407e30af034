/**
 * Malformed, half-sent and abandoned conversations against a live storage node. After each batch the node must serve a
 * well-behaved client, hold no connection and no memory of the bad ones, and still be the same process.
 *
 *   node test/fault/fuzz.ts --cases 100000 --seed 7 [--workers 2]     mutations of the corpus
 *   node test/fault/fuzz.ts --seed 7 --only 4711                      one case again
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import * as nbd from '@blockwire/proto/nbd/constants.ts';
import { BLOCK_BYTES, blockContent } from './block-content.ts';
import { bytesOf, loadCorpus, type Sample } from './corpus.ts';
import { mutate } from './mutate.ts';
import { NbdSession } from './nbd-session.ts';
import { freshSeed, Random } from './random.ts';
import { StorageNode } from './storage-node.ts';

export const FUZZ_VOLUME = 'vol-fuzz';
export const GOOD_VOLUME = 'vol-good';
export const VOLUME_BYTES = 2 ** 20;
/** In which a bad connection is closed, and a good request answered. */
const BOUND_MS = 10_000;
/** More than this of replies nobody wants to read. */
const REPLIES_BYTES_MAX = 8 * 2 ** 20;
/** What the process may grow after its first batch. */
const GROWTH_BYTES_MAX = 96 * 2 ** 20;

/** How a bad client leaves. */
export type Ending = 'finish' | 'reset' | 'linger' | 'deaf';

export interface BadConversation {
  readonly bytes: Buffer;
  /** Where the stream is cut into sends. */
  readonly cuts: readonly number[];
  readonly ending: Ending;
}

export class FuzzViolation extends Error {}

/** The case of a number: the same for the same seed. */
export function conversationOf(seed: number, index: number, corpus: readonly Sample[]): BadConversation {
  const random = new Random(Math.imul(seed, 0x9e3779b1) ^ index);
  const bytes = mutate(random, corpus);
  const cuts = random.oneIn(3)
    ? Array.from({ length: 1 + random.below(6) }, () => random.below(bytes.length + 1))
    : [];
  const ending = random.pick<Ending>(['finish', 'finish', 'finish', 'reset', 'linger', 'deaf']);
  return { bytes, cuts: cuts.sort((a, b) => a - b), ending };
}

/** A socket whose errors are nobody's concern: a reset by the server is an answer too. */
export function connectRaw(address: string): Socket {
  const at = address.lastIndexOf(':');
  const socket = connect(Number(address.slice(at + 1)), address.slice(0, at));
  socket.setNoDelay(true);
  socket.on('error', () => {});
  return socket;
}

/** Plays a bad client. Resolves when the connection is over; rejects when the server keeps it beyond the bound. */
export async function converse(address: string, { bytes, cuts, ending }: BadConversation): Promise<void> {
  const socket = connectRaw(address);
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  let receivedBytes = 0;
  if (ending !== 'deaf') {
    socket.on('data', (chunk: Buffer) => {
      receivedBytes += chunk.length;
      if (receivedBytes > REPLIES_BYTES_MAX) socket.destroy();
    });
  }
  let from = 0;
  for (const to of [...cuts, bytes.length]) {
    if (!socket.writable) break;
    socket.write(bytes.subarray(from, to));
    if (to < bytes.length) await sleep(1);
    from = to;
  }
  if (ending === 'linger' || ending === 'deaf') await sleep(30);
  if (ending === 'reset') {
    await sleep(1);
    socket.resetAndDestroy();
  } else if (ending === 'deaf') socket.destroy();
  else socket.end();
  const timer = new AbortController();
  const late = sleep(BOUND_MS, 'late', { signal: timer.signal }).catch(() => 'closed');
  const outcome = await Promise.race([closed, late]);
  timer.abort();
  socket.destroy();
  if (outcome === 'late') throw new FuzzViolation('a connection that was finished is not closed');
}

/** A node, its witness, and what they were like before. */
export class FuzzTarget {
  readonly node: StorageNode;
  readonly #witness: NbdSession;
  readonly #baseConnections: number;
  readonly #basePoolBytes: number;
  #baseResidentBytes = Number.NaN;
  #sequence = 0;

  static async start(dataDir: string, extra: readonly string[] = []): Promise<FuzzTarget> {
    const exports = [`${FUZZ_VOLUME}=${VOLUME_BYTES}`, `${GOOD_VOLUME}=${VOLUME_BYTES}`];
    const node = await StorageNode.start({ dataDir, exports, extra });
    const witness = await NbdSession.open(node.nbd, { exportName: GOOD_VOLUME });
    const connections = await node.metric('blockwire_node_connections');
    return new FuzzTarget(node, witness, connections, await node.metric('blockwire_node_pool_free_bytes'));
  }

  private constructor(node: StorageNode, witness: NbdSession, connections: number, poolBytes: number) {
    this.node = node;
    this.#witness = witness;
    this.#baseConnections = connections;
    this.#basePoolBytes = poolBytes;
  }

  /** Runs conversations, some at a time; rejects with the index of the first that is kept open. */
  async play(conversations: Iterable<readonly [number, BadConversation]>, atOnce: number): Promise<void> {
    const iterator = conversations[Symbol.iterator]();
    const lane = async (): Promise<void> => {
      for (let next = iterator.next(); next.done !== true; next = iterator.next()) {
        const [index, conversation] = next.value;
        await converse(this.node.nbd, conversation).catch((error: unknown) => {
          throw new FuzzViolation(`case ${index}: ${String(error)}`, { cause: error });
        });
      }
    };
    await Promise.all(Array.from({ length: atOnce }, lane));
  }

  /** Throws FuzzViolation unless the node is as good as new. */
  async check(): Promise<void> {
    const { node } = this;
    if (node.ended !== null) throw new FuzzViolation(`the node ended: ${node.ended}\n${node.log}`);
    await bounded('the witness', this.#writeAndRead(this.#witness));
    const fresh = await bounded(
      'a new client',
      NbdSession.open(node.nbd, { exportName: GOOD_VOLUME, mode: 'extended' }),
    );
    await bounded('a new client', this.#writeAndRead(fresh));
    fresh.destroy();
    await this.#settles(
      'connections',
      () => node.metric('blockwire_node_connections'),
      this.#baseConnections,
    );
    await this.#settles(
      'free pool',
      () => node.metric('blockwire_node_pool_free_bytes'),
      this.#basePoolBytes,
    );
    const resident = node.residentBytes();
    if (Number.isNaN(this.#baseResidentBytes)) this.#baseResidentBytes = resident;
    const growth = resident - this.#baseResidentBytes;
    if (growth > GROWTH_BYTES_MAX) throw new FuzzViolation(`the process grew by ${growth >> 20} MiB`);
  }

  async end(): Promise<void> {
    this.#witness.destroy();
    await this.node.end('SIGKILL');
  }

  async #writeAndRead(session: NbdSession): Promise<void> {
    const sequence = ++this.#sequence;
    const block = sequence % (VOLUME_BYTES / BLOCK_BYTES);
    const data = blockContent(block, sequence);
    const written = await session.request(nbd.NBD_CMD_WRITE, block * BLOCK_BYTES, BLOCK_BYTES, { data });
    const read = await session.request(nbd.NBD_CMD_READ, block * BLOCK_BYTES, BLOCK_BYTES);
    if (written.error !== 0 || read.error !== 0) {
      throw new FuzzViolation(`a good client got errors ${written.error} and ${read.error}`);
    }
    if (!data.equals(read.data)) throw new FuzzViolation('a good client reads something else than it wrote');
  }

  async #settles(what: string, now: () => Promise<number>, expected: number): Promise<void> {
    let value = Number.NaN;
    for (const until = Date.now() + BOUND_MS; Date.now() < until; await sleep(50)) {
      value = await now();
      if (value === expected) return;
    }
    throw new FuzzViolation(`${what}: ${value} instead of ${expected}`);
  }
}

async function bounded<T>(what: string, work: Promise<T>): Promise<T> {
  const timer = new AbortController();
  const late = sleep(BOUND_MS, null, { signal: timer.signal }).then(
    () => {
      throw new FuzzViolation(`${what} waits for more than ${BOUND_MS} ms`);
    },
    () => new Promise<never>(() => {}),
  );
  try {
    return await Promise.race([work, late]);
  } finally {
    timer.abort();
  }
}

/** Mutations `from` to `to` - 1 of a seed. */
export function* mutations(seed: number, from: number, to: number): Generator<[number, BadConversation]> {
  const corpus = loadCorpus();
  for (let index = from; index < to; index++) yield [index, conversationOf(seed, index, corpus)];
}

/** Every sample, broken off at every byte: finished in good order, and reset. */
export function* hangUps(stepBytes = 1): Generator<[number, BadConversation]> {
  let index = 0;
  for (const sample of loadCorpus()) {
    const all = bytesOf(sample.frames);
    // Within long payloads one place is like the next.
    for (let end = 0; end <= all.length; end += end > 400 ? stepBytes * 173 : stepBytes) {
      for (const ending of ['finish', 'reset'] as const) {
        yield [index++, { bytes: all.subarray(0, end), cuts: [], ending }];
      }
    }
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      cases: { type: 'string', default: '10000' },
      seed: { type: 'string' },
      only: { type: 'string' },
      workers: { type: 'string', default: '1' },
      dir: { type: 'string', default: tmpdir() },
    },
  });
  const seed = values.seed === undefined ? freshSeed() : Number(values.seed);
  const from = values.only === undefined ? 0 : Number(values.only);
  const to = values.only === undefined ? Number(values.cases) : from + 1;
  const directory = mkdtempSync(join(values.dir, 'blockwire-fuzz-'));
  const say = (text: string): void => void process.stdout.write(`${text}\n`);
  const target = await FuzzTarget.start(join(directory, 'data'), ['--workers', values.workers]);
  say(`seed ${seed}, cases ${from} to ${to}`);
  let at = from;
  try {
    await target.check();
    for (; at < to; at += 500) {
      await target.play(mutations(seed, at, Math.min(at + 500, to)), 16);
      await target.check();
      if (at % 5000 === 0) say(`${at} ... resident ${target.node.residentBytes() >> 20} MiB`);
    }
    say(`${to - from} cases, nothing found`);
  } catch (error) {
    say(
      `seed ${seed}, batch from ${at}: ${error instanceof Error ? error.message : String(error)}\n${target.node.log}`,
    );
    process.exitCode = 1;
  } finally {
    await target.end();
    rmSync(directory, { recursive: true, force: true });
  }
}

if (import.meta.main) await main();
