/** What a device is made like, and how it ends when no replica answers. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { eventually, fioVerify, MIB, World } from './world.ts';

const REPLICA_TIMEOUT_MS = 2000;
const SWAPPED_MIB = 128;
const BALLAST_FILE_MIB = 8;

describe('the life of a device', () => {
  let world: World;
  before(async () => {
    world = await World.start({ cpus: 4, agent: { replicaTimeoutMs: REPLICA_TIMEOUT_MS } });
  });
  after(() => world?.close());

  const signalNodes = (signal: NodeJS.Signals): void => {
    for (const { id } of world.cluster.nodes) world.cluster.signalNode(id, signal);
  };

  const swapPages = async (counter: 'pswpin' | 'pswpout'): Promise<number> =>
    Number(await world.shell(`awk '$1 == "${counter}" {print $2}' /proc/vmstat`));

  it('queues, depth, blocks, limits and read-only are as asked', async () => {
    const volume = await world.rest.createVolume({ name: 'form', sizeBytes: 64 * MIB, replicas: 2 });
    const asked = { queues: 4, queueDepth: 64, blockSizeBytes: 4096, readOnly: true };
    const { id, device } = await world.rest.attach({ volume: volume.id, ...asked });
    const queue = `/sys/block/${device.slice(5)}/queue`;
    const limits = await world.shell(
      `cd ${queue} && grep . logical_block_size physical_block_size minimum_io_size optimal_io_size ` +
        'max_hw_sectors_kb discard_granularity discard_max_bytes write_zeroes_max_bytes nr_requests fua write_cache; ' +
        `ls ../mq | wc -l; blockdev --getro ${device}; lsblk -dnt -o MIN-IO,PHY-SEC,LOG-SEC ${device}`,
    );
    assert.deepEqual(
      limits
        .trim()
        .split('\n')
        .map((line) => line.trim().replace(/\s+/g, ' ')),
      [
        'logical_block_size:4096',
        'physical_block_size:4096',
        'minimum_io_size:4096',
        'optimal_io_size:4096',
        'max_hw_sectors_kb:1024',
        'discard_granularity:4096',
        `discard_max_bytes:${2 ** 30}`,
        `write_zeroes_max_bytes:${2 ** 30}`,
        'nr_requests:64',
        'fua:1',
        'write_cache:write back',
        '4',
        '1',
        '4096 4096 4096',
      ],
    );
    const write = await world.machine.run(`dd if=/dev/zero of=${device} bs=4k count=1 oflag=direct`);
    assert.notEqual(write.exitCode, 0);
    await world.shell(`dd if=${device} of=/dev/null bs=1M count=8 iflag=direct`);
    await world.rest.detach(id);

    const again = await world.rest.attach({ volume: volume.id });
    const small = await world.shell(
      `cat /sys/block/${again.device.slice(5)}/queue/logical_block_size; blockdev --getro ${again.device}; ` +
        `dd if=/dev/urandom of=${again.device} bs=512 seek=3 count=5 oflag=direct status=none; echo $?`,
    );
    assert.equal(small, '512\n0\n0\n');
    await world.rest.detach(again.id);
    await world.rest.deleteVolume(volume.id);
  });

  it('a device that is taken away under load ends the load with an error, and is gone', async () => {
    const [volume, { id, device }] = await world.attachNew('taken', 64 * MIB);
    const load = world.machine.start(fioVerify(device, { sizeBytes: 64 * MIB }));
    await eventually(
      () => world.agentMetric('blockwire_agent_bytes_total', { volume: volume.id, operation: 'write' }),
      (bytes) => bytes > 4 * MIB,
    );
    await world.rest.detach(id, { force: true });
    assert.notEqual((await load.done).exitCode, 0);
    await world.shell(`test ! -e ${device} && test ! -e ${device.replace('ublkb', 'ublkc')}`);
    await world.rest.deleteVolume(volume.id);
  });

  it('memory that is written out to a device comes back, under pressure', async (t) => {
    const [volume, { id, device }] = await world.attachNew('swap', 1024 * MIB);
    await world.shell(`mkswap ${device} && swapon ${device}`);
    assert.equal(await world.shell('cat /sys/fs/cgroup/agent/memory.swap.max'), '0\n');
    // More files than memory holds, written once and left alone: the kernel has to write out some, and does not thrash.
    // They are not zeros, of which it would only keep note.
    const availableMiB = Number(
      await world.shell("awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo"),
    );
    const files = Math.ceil((availableMiB + SWAPPED_MIB) / BALLAST_FILE_MIB);
    await world.shell(
      'mkdir -p /run/ballast && mount -t tmpfs -o size=200% tmpfs /run/ballast && cd /run/ballast && ' +
        `head -c ${BALLAST_FILE_MIB}M /dev/urandom > /run/pattern && echo 200 > /proc/sys/vm/swappiness && ` +
        `for i in {1..${files}}; do cat /run/pattern > $i; done`,
    );
    const swappedOut = await swapPages('pswpout');
    // The oldest are those that went.
    await world.shell(
      `cd /run/ballast && for i in {1..${SWAPPED_MIB / 2 / BALLAST_FILE_MIB}}; do cmp $i /run/pattern; done`,
    );
    const swappedIn = await swapPages('pswpin');
    t.diagnostic(`pages swapped: ${swappedOut} out, ${swappedIn} in`);
    assert.ok(swappedOut > 5000, 'nothing was written out');
    assert.ok(swappedIn > 5000, 'nothing came back');
    assert.equal(await world.agentMetric('blockwire_agent_errors_total', { volume: volume.id }), 0);
    await world.shell(`umount /run/ballast && swapoff ${device}`);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });

  it('when no replica answers I/O fails after the I/O timeout, and goes on when one is back', async () => {
    const volume = await world.rest.createVolume({ name: 'timeout', sizeBytes: 16 * MIB, replicas: 2 });
    const { id, device } = await world.rest.attach({ volume: volume.id, ioTimeoutMs: 4000 });
    const io = async (): Promise<string> => (await world.rest.attachment(id)).io;
    await world.shell(`dd if=/dev/urandom of=${device} bs=4k count=16 oflag=direct`);
    await eventually(io, (state) => state === 'ok');
    signalNodes('SIGSTOP');
    try {
      const write = await world.machine.run(`dd if=/dev/urandom of=${device} bs=4k count=16 oflag=direct`);
      assert.notEqual(write.exitCode, 0);
      assert.match(write.output, /Input\/output error/);
      await eventually(io, (state) => state === 'failing');
      const labels = { volume: volume.id, state: 'failing' };
      assert.equal(await world.agentMetric('blockwire_agent_io_state', labels), 1);
      assert.match(world.agent.log, /no in-sync replica has answered for 4000 ms: I\/O fails/);
      const read = await world.machine.run(`dd if=${device} of=/dev/null bs=4k count=16 iflag=direct`);
      assert.notEqual(read.exitCode, 0);
    } finally {
      signalNodes('SIGCONT');
    }
    await eventually(io, (state) => state === 'ok');
    await world.shell(`dd if=/dev/urandom of=${device} bs=4k count=16 oflag=direct`);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });

  it('without an I/O timeout I/O waits for the replicas, however long, and detach --force ends it', async () => {
    const [volume, { id, device }] = await world.attachNew('stuck', 64 * MIB);
    await world.shell(`mkfs.ext4 -q ${device} && mkdir -p /run/stuck && mount ${device} /run/stuck`);
    signalNodes('SIGSTOP');
    try {
      const writer = world.machine.start(
        'dd if=/dev/urandom of=/run/stuck/file bs=1M count=8 conv=fsync; echo ended with $?',
      );
      const readers = world.machine.start(
        `for i in 1 2 3; do dd if=${device} of=/dev/null bs=64k skip=$i count=4 iflag=direct & done; wait`,
      );
      await eventually(
        () => world.machine.check('ps -eo state=,comm= | grep "^D.*dd" | wc -l'),
        (count) => Number(count) >= 2,
      );
      await eventually(
        async () => (await world.rest.attachment(id)).io,
        (state) => state === 'waiting',
      );
      await world.rest.detach(id, { force: true });
      assert.match((await writer.done).output, /ended with 1/);
      await readers.done;
      await eventually(
        () => world.machine.check(`ls ${device} 2>/dev/null | wc -l; ps -eo state= | grep -c D || true`),
        (output) => output === '0\n0\n',
      );
    } finally {
      signalNodes('SIGCONT');
    }
    await world.shell('umount /run/stuck');
    await eventually(
      () => world.rest.call('GET', '/v1/nodes'),
      ({ body }) => (JSON.stringify(body).match(/"online"/g) ?? []).length === 2,
    );
    const again = await world.rest.attach({ volume: volume.id });
    await world.shell(`fsck.ext4 -fy ${again.device}; fsck.ext4 -fn ${again.device}`);
    await world.rest.detach(again.id);
    await world.rest.deleteVolume(volume.id);
  });
});
