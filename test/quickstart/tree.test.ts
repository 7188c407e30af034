import assert from 'node:assert/strict';
import { linkSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { chooseFolders, describeTree, measure } from './tree.ts';

test('a file with two names counts once, and is archived once', (t) => {
  const root = mkdtempSync(join(tmpdir(), 'bw-tree-'));
  t.after(() => rmSync(root, { recursive: true }));
  mkdirSync(join(root, 'folder'));
  writeFileSync(join(root, 'folder/a'), Buffer.alloc(1000));
  linkSync(join(root, 'folder/a'), join(root, 'folder/b'));
  writeFileSync(join(root, 'c'), 'x');
  assert.deepEqual(measure(root), { sizeBytes: 1001, fileCount: 2 });
  const tree = describeTree([{ outside: root, inside: root }]);
  assert.equal(tree.fileCount, 3);
  // Two folders and three files with a header each, 1000 bytes and 1 byte of content in whole blocks.
  assert.equal(tree.archiveBytes, 5 * 512 + 1024 + 512);
});

test('folders are taken largest first until there are enough bytes and enough files', () => {
  const extents = new Map([
    ['small', { sizeBytes: 10, fileCount: 5 }],
    ['large', { sizeBytes: 100, fileCount: 1 }],
    ['middle', { sizeBytes: 50, fileCount: 3 }],
  ]);
  const folders = (sizeBytes: number, fileCount: number) => chooseFolders(extents, { sizeBytes, fileCount });
  assert.deepEqual(folders(100, 1), { folders: ['large'], enough: true });
  assert.deepEqual(folders(100, 2), { folders: ['large', 'middle'], enough: true });
  assert.deepEqual(folders(160, 10), { folders: ['large', 'middle', 'small'], enough: false });
});
