/** The tree of files that is copied: what it consists of, and a description of it to compare a copy with. */
import { createHash } from 'node:crypto';
import { closeSync, lstatSync, openSync, readdirSync, readlinkSync, readSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

export interface TreeRoot {
  /** As this process sees it. */
  readonly outside: string;
  /** As the machine sees it; the same last component. */
  readonly inside: string;
}

export interface Tree {
  readonly roots: readonly TreeRoot[];
  readonly fileCount: number;
  readonly folderCount: number;
  readonly linkCount: number;
  /** Of the files' contents. */
  readonly sizeBytes: number;
  /** Of the stream that tar makes of it. */
  readonly archiveBytes: number;
  /** A line for every file, folder and symbolic link, sorted by bytes, as `verify.sh` makes them. */
  readonly listing: string;
  /** What `sha256sum` prints of every file. */
  readonly checksums: string;
}

const TAR_BLOCK_BYTES = 512;
const READ_BYTES = 1 << 20;

export interface Extent {
  readonly sizeBytes: number;
  readonly fileCount: number;
}

/** Files below a folder, and their bytes; a file with several names counts once. */
export function measure(root: string): Extent {
  const inodes = new Set<number>();
  let sizeBytes = 0;
  for (const entry of readdirSync(root, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const { ino, size } = statSync(join(entry.parentPath, entry.name));
    if (inodes.has(ino)) continue;
    inodes.add(ino);
    sizeBytes += size;
  }
  return { sizeBytes, fileCount: inodes.size };
}

/** The folders to take, largest first, until both minima are reached; all of them where they never are. */
export function chooseFolders(
  extents: ReadonlyMap<string, Extent>,
  minimum: Extent,
): { folders: string[]; enough: boolean } {
  const folders: string[] = [];
  let sizeBytes = 0;
  let fileCount = 0;
  const enough = () => sizeBytes >= minimum.sizeBytes && fileCount >= minimum.fileCount;
  for (const [folder, extent] of [...extents].sort(([, a], [, b]) => b.sizeBytes - a.sizeBytes)) {
    if (enough()) break;
    folders.push(folder);
    sizeBytes += extent.sizeBytes;
    fileCount += extent.fileCount;
  }
  return { folders, enough: enough() };
}

/** Reads and digests everything below the roots. Throws RangeError for what a disk image cannot be compared by. */
export function describeTree(roots: readonly TreeRoot[]): Tree {
  const lines: string[] = [];
  const sums: string[] = [];
  const counts = { fileCount: 0, folderCount: 0, linkCount: 0, sizeBytes: 0, archiveBytes: 0 };
  const buffer = Buffer.alloc(READ_BYTES);
  const archived = new Set<number>();

  const visit = (outside: string, name: string): void => {
    if (/[\n\\]/.test(name)) throw new RangeError(`'${name}' has a character that sha256sum escapes`);
    const stat = lstatSync(outside);
    const mode = (stat.mode & 0o7777).toString(8);
    counts.archiveBytes += TAR_BLOCK_BYTES;
    if (stat.isSymbolicLink()) {
      counts.linkCount++;
      lines.push(`l ${readlinkSync(outside)} ${name}`);
    } else if (stat.isDirectory()) {
      counts.folderCount++;
      lines.push(`d ${mode} ${name}`);
      for (const entry of readdirSync(outside)) visit(join(outside, entry), `${name}/${entry}`);
    } else if (stat.isFile()) {
      counts.fileCount++;
      counts.sizeBytes += stat.size;
      // tar stores further names of a file as links.
      if (!archived.has(stat.ino))
        counts.archiveBytes += Math.ceil(stat.size / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES;
      archived.add(stat.ino);
      lines.push(`f ${mode} ${stat.size} ${name}`);
      sums.push(`${digest(outside, buffer)}  ${name}`);
    } else {
      throw new RangeError(`'${outside}' is neither file, folder nor link`);
    }
  };

  for (const { outside, inside } of roots) {
    if (basename(outside) !== basename(inside)) throw new RangeError(`${outside} is ${inside} inside`);
    visit(outside, basename(outside));
  }
  return { roots, ...counts, listing: text(lines), checksums: text(sums) };
}

/** The tar parameters that put the roots into one archive. */
export function archiveParameters(tree: Tree): string {
  return tree.roots.map(({ inside }) => `-C '${dirname(inside)}' '${basename(inside)}'`).join(' ');
}

function digest(path: string, buffer: Buffer): string {
  const hash = createHash('sha256');
  const fd = openSync(path, 'r');
  try {
    for (let count = readSync(fd, buffer); count > 0; count = readSync(fd, buffer)) {
      hash.update(buffer.subarray(0, count));
    }
  } finally {
    closeSync(fd);
  }
  return hash.digest('hex');
}

function text(lines: readonly string[]): string {
  const sorted = lines.map((line) => Buffer.from(line)).sort(Buffer.compare);
  return sorted.map((line) => `${line.toString()}\n`).join('');
}
