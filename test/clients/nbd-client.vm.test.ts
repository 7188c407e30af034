/** The kernel's NBD client, in the VM, on a volume of a node on this host: a file system lives on it. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { StorageNode } from '../fault/storage-node.ts';
import type { Machine } from '../vm/machine.ts';
import { Vm } from '../vm/vm.ts';

const MIB = 2 ** 20;
const SIZE = 128 * MIB;
const COMMAND_MS_MAX = 5 * 60_000;
const DEVICE = '/dev/nbd0';

describe("the kernel's NBD client", () => {
  let machine: Machine;
  let node: StorageNode;
  let directory: string;

  const shell = (command: string): Promise<string> => machine.check(command, { timeoutMs: COMMAND_MS_MAX });
  const attach = (connections: number): Promise<string> =>
    shell(
      `nbd-client ${machine.hostAddress} ${node.nbd.split(':')[1]} -N vol-a -C ${connections} ${DEVICE} &&` +
        ` test "$(blockdev --getsize64 ${DEVICE})" = ${SIZE}`,
    );
  const detach = (): Promise<string> => shell(`nbd-client -d ${DEVICE}`);
  const startNode = (): Promise<StorageNode> =>
    StorageNode.start({ dataDir: join(directory, 'data'), exports: [`vol-a=${SIZE}`] });

  before(async () => {
    machine = await Vm.boot({ memoryMiB: 2048 });
    directory = mkdtempSync(join(tmpdir(), 'blockwire-nbd-client-'));
    node = await startNode();
  });
  after(async () => {
    await machine?.close();
    await node?.end('SIGKILL');
    if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
  });

  it('ext4: files are there after the device was attached anew, and the file system is clean', async () => {
    await attach(1);
    await shell(`mkfs.ext4 -q -b 4096 ${DEVICE} && mkdir -p /tmp/disk && mount ${DEVICE} /tmp/disk`);
    await shell(
      'mkdir /tmp/disk/doc /tmp/disk/bin && cp -a /usr/share/doc/[a-c]* /tmp/disk/doc && cp -a /usr/bin/[a-c]* /tmp/disk/bin && sync',
    );
    const sum = 'cd /tmp/disk && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum';
    const before = await shell(sum);
    await shell('umount /tmp/disk');
    await detach();
    await attach(1);
    await shell(`fsck.ext4 -f -n ${DEVICE}`);
    await shell(`mount -o ro ${DEVICE} /tmp/disk`);
    assert.equal(await shell(sum), before);
    await shell('umount /tmp/disk');
    await detach();
  });

  it('several connections, discard, and a node that was killed between two mounts', async () => {
    await attach(4);
    await shell(`mount -o discard ${DEVICE} /tmp/disk`);
    await shell('rm -rf /tmp/disk/doc /tmp/disk/bin/b* && fstrim /tmp/disk');
    await shell(
      'head -c 20M /dev/urandom > /tmp/disk/random && sync && sha256sum /tmp/disk/random > /tmp/random.sum',
    );
    assert.ok((await node.metric('blockwire_node_trim_requests_total')) > 0);
    assert.ok((await node.metric('blockwire_node_flush_requests_total')) > 0);
    await shell('umount /tmp/disk');
    await detach();
    await node.end('SIGKILL');
    node = await startNode();
    await attach(4);
    await shell(`fsck.ext4 -f -n ${DEVICE} && mount ${DEVICE} /tmp/disk`);
    await shell('sha256sum -c /tmp/random.sum && umount /tmp/disk');
    await detach();
  });
});
