/**
 * Replacing a small file atomically: after a crash at any moment the old or the new content is there, and the new one once
 * `replaceFile` has returned. The file system comes as a parameter, so that a test can crash it between any two calls.
 */
import { closeSync, fsyncSync, openSync, renameSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

/** What replacing a file asks of the file system; as in node:fs, all of it throws on failure. */
export interface FileSystem {
  /** A file for writing, made or cut to nothing; or a directory, for `sync`. */
  open(path: string, flags: 'w' | 'r'): number;
  /** Returns how many bytes were written, which may be fewer. */
  write(fd: number, bytes: Uint8Array): number;
  sync(fd: number): void;
  close(fd: number): void;
  rename(from: string, to: string): void;
}

const REAL: FileSystem = {
  open: (path, flags) => openSync(path, flags, 0o600),
  write: (fd, bytes) => writeSync(fd, bytes),
  sync: fsyncSync,
  close: closeSync,
  rename: renameSync,
};

/** Writes `content` to a file beside `path`, makes it durable, and puts it in its place, durably. */
export function replaceFile(path: string, content: string, fs: FileSystem = REAL): void {
  const partial = `${path}.new`;
  const fd = fs.open(partial, 'w');
  try {
    // A disk that becomes full takes a part first, and fails at the next write only.
    let rest = Buffer.from(content);
    while (rest.length > 0) rest = rest.subarray(fs.write(fd, rest));
    fs.sync(fd);
  } finally {
    fs.close(fd);
  }
  fs.rename(partial, path);
  syncDirectory(dirname(path), fs);
}

/** Makes creations and renames in a directory durable. */
export function syncDirectory(directory: string, fs: FileSystem = REAL): void {
  const fd = fs.open(directory, 'r');
  try {
    fs.sync(fd);
  } finally {
    fs.close(fd);
  }
}
