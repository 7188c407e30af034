import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { it } from 'node:test';
import { cpioArchive } from './cpio.ts';
import { loadOrder, parseModulesDep } from './initramfs.ts';

const MODULES_DEP = `kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko
kernel/drivers/nvme/host/nvme-tcp.ko: kernel/drivers/nvme/host/nvme-core.ko
kernel/drivers/nvme/host/nvme-core.ko:
`;

it('loads a module after what it needs, and each once', () => {
  const modules = parseModulesDep(MODULES_DEP);
  const names = loadOrder(modules, ['virtio_net', 'net_failover', 'nvme_tcp']).map((file) =>
    path.basename(file),
  );
  assert.deepEqual(names, ['failover.ko', 'net_failover.ko', 'virtio_net.ko', 'nvme-core.ko', 'nvme-tcp.ko']);
});

it('names a module that the kernel does not have', () => {
  assert.throws(() => loadOrder(parseModulesDep(MODULES_DEP), ['zram']), /zram/);
});

it('writes archives that cpio unpacks', () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cpio-'));
  const archive = cpioArchive([
    { path: 'bin', kind: 'directory' },
    { path: 'bin/tool', kind: 'file', content: Buffer.from('content'), executable: true },
    { path: 'bin/link', kind: 'symlink', target: 'tool' },
    { path: 'empty', kind: 'file', content: Buffer.alloc(0) },
  ]);
  try {
    execFileSync('busybox', ['cpio', '-idm'], {
      cwd: directory,
      input: archive,
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    assert.equal(fs.readFileSync(path.join(directory, 'bin/link'), 'utf8'), 'content');
    assert.equal(fs.statSync(path.join(directory, 'bin/tool')).mode & 0o777, 0o755);
    assert.equal(fs.statSync(path.join(directory, 'empty')).size, 0);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
});
