/** What the tests of other people's clients share: a node with volumes, their programs, and content to recognise. */
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { runToEnd } from '../bench/processes.ts';
import { rangeContent } from '../fault/block-content.ts';
import { StorageNode } from '../fault/storage-node.ts';

export const MIB = 2 ** 20;
const PROGRAM_MS_MAX = 120_000;

export interface ServedNode {
  readonly node: StorageNode;
  /** For the clients' files. */
  readonly directory: string;
  uri(volume: string): string;
  path(name: string): string;
}

/** A node that ends with the test. @param volumes sizes in bytes by name */
export async function serve(
  t: TestContext,
  volumes: Readonly<Record<string, number>>,
  extra: readonly string[] = [],
): Promise<ServedNode> {
  const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-clients-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const exports = Object.entries(volumes).map(([name, sizeBytes]) => `${name}=${sizeBytes}`);
  const node = await StorageNode.start({ dataDir: join(directory, 'node'), exports, extra });
  t.after(() => node.end('SIGKILL'));
  return {
    node,
    directory,
    uri: (volume) => `nbd://${node.nbd}/${volume}`,
    path: (name) => join(directory, name),
  };
}

/** Runs a client to its end; throws with what it printed unless it ends with 0. Returns its output. */
export function client(...command: string[]): Promise<string> {
  return runToEnd(command, { timeoutMs: PROGRAM_MS_MAX });
}

/** A file of blocks that say where they belong, with zeroes in the given ranges. */
export function writeImage(
  path: string,
  sizeBytes: number,
  sequence: number,
  zeroes: readonly (readonly [offset: number, lengthBytes: number])[] = [],
): Buffer {
  const content = Buffer.from(rangeContent(0, sizeBytes, sequence));
  for (const [offset, lengthBytes] of zeroes) content.fill(0, offset, offset + lengthBytes);
  writeFileSync(path, content);
  return content;
}

/** The content of a volume as nbdcopy reads it, by its digest. */
export async function volumeDigest(served: ServedNode, volume: string): Promise<string> {
  const path = served.path(`${volume}.read`);
  await client('nbdcopy', '--destination-is-zero', served.uri(volume), path);
  return digest(readFileSync(path));
}

export function digest(content: Uint8Array): string {
  return createHash('sha256').update(content).digest('hex');
}

/** qemu-io with a script; throws when a pattern does not match. */
export async function qemuIo(
  uri: string,
  script: readonly string[],
  options: readonly string[] = [],
): Promise<string> {
  const output = await client(
    'qemu-io',
    '-f',
    'raw',
    ...options,
    uri,
    ...script.flatMap((line) => ['-c', line]),
  );
  // qemu-io ends with 0 also after some failures.
  if (/failed|error|Pattern verification/i.test(output)) throw new Error(output);
  return output;
}
