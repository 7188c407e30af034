/** Writes cpio archives in the "newc" format, which Linux unpacks as its initramfs (initramfs-buffer-format.rst). */

export type CpioEntry =
  | { readonly path: string; readonly kind: 'directory' }
  | { readonly path: string; readonly kind: 'symlink'; readonly target: string }
  | {
      readonly path: string;
      readonly kind: 'file';
      readonly content: Uint8Array;
      readonly executable?: boolean;
    };

const MODE = { directory: 0o040755, symlink: 0o120777, file: 0o100644, executable: 0o100755 };

/** The archive; entries are owned by root, directories must come before what is in them. */
export function cpioArchive(entries: readonly CpioEntry[]): Buffer {
  const parts: Uint8Array[] = [];
  entries.forEach((entry, index) => {
    const [mode, content] = modeAndContent(entry);
    append(parts, entry.path, index + 1, mode, content);
  });
  append(parts, 'TRAILER!!!', 0, 0, Buffer.alloc(0));
  return Buffer.concat(parts);
}

function modeAndContent(entry: CpioEntry): [number, Uint8Array] {
  if (entry.kind === 'directory') return [MODE.directory, Buffer.alloc(0)];
  if (entry.kind === 'symlink') return [MODE.symlink, Buffer.from(entry.target)];
  return [entry.executable ? MODE.executable : MODE.file, entry.content];
}

function append(parts: Uint8Array[], name: string, inode: number, mode: number, content: Uint8Array): void {
  const nameBytes = Buffer.byteLength(name) + 1;
  // Fields: ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, nameBytes, 0];
  const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}${name}\0`;
  parts.push(Buffer.from(header), padding(header.length), content, padding(content.length));
}

/** Header with name, and content, each start at a multiple of four bytes. */
function padding(lengthBytes: number): Buffer {
  return Buffer.alloc((4 - (lengthBytes % 4)) % 4);
}
