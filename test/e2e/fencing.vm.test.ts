/** Two agents and one volume: who was replaced cannot change a byte any more, whatever it still believes. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Agent } from './cluster.ts';
import { eventually, fioVerify, MIB, REPLICA_TIMEOUT_MS, World } from './world.ts';

const SIZE_BYTES = 32 * MIB;

describe('fencing', () => {
  let world: World;
  let second: Agent;
  before(async () => {
    world = await World.start();
    second = await Agent.start(world.machine, world.cluster, {
      id: 'agent-2',
      replicaTimeoutMs: REPLICA_TIMEOUT_MS,
    });
  });
  after(() => world?.close());

  it('an agent that was paused while another one took its volume by force changes nothing when it goes on', async () => {
    const volume = await world.rest.createVolume({ name: 'fenced', sizeBytes: SIZE_BYTES, replicas: 2 });
    const old = await world.rest.attach({ volume: volume.id, agent: 'agent-1' });
    const load = world.machine.start(
      `fio --name=old --filename=${old.device} --rw=randwrite --bs=4k --size=${SIZE_BYTES} --direct=1 --ioengine=libaio ` +
        '--iodepth=32 --time_based --runtime=600 --refill_buffers',
    );
    await eventually(
      () => world.agentMetric('blockwire_agent_bytes_total', { volume: volume.id, operation: 'write' }),
      (bytes) => bytes > MIB,
    );
    world.agent.process.kill('SIGSTOP');
    const refused = await world.rest.refusal('POST', '/v1/attachments', {
      volume: volume.id,
      agent: 'agent-2',
    });
    assert.equal(refused, '409 BW_VOLUME_IN_USE');

    const taken = await world.rest.attach({ volume: volume.id, agent: 'agent-2', force: true });
    assert.equal(taken.agent, 'agent-2');
    await world.shell(fioVerify(taken.device, { sizeBytes: SIZE_BYTES / 4 }));
    const before = await world.replicaDigests(volume);
    assert.equal(before[0], before[1], 'the replicas differ');

    world.agent.process.kill('SIGCONT');
    const { exitCode } = await load.done;
    assert.notEqual(exitCode, 0, 'what the old device still had to write ended well');
    // It may be gone already.
    const late = await world.machine.run(
      `dd if=/dev/urandom of=${old.device} bs=4k count=1 oflag=direct conv=nocreat`,
    );
    assert.notEqual(late.exitCode, 0, 'the old device takes writes');
    assert.deepEqual(await world.replicaDigests(volume), before);

    await world.shell(fioVerify(taken.device, { sizeBytes: SIZE_BYTES / 4 }));
    await world.rest.detach(taken.id);
    const now = await world.rest.volume(volume.id);
    assert.equal(now.degraded, false, JSON.stringify(now));
    const [one, other] = await world.replicaDigests(volume);
    assert.equal(one, other);
    // Its agent is told to remove it, as soon as it answers again.
    await world.shell(`for i in {1..300}; do test ! -e ${old.device} && exit 0; sleep 0.1; done; exit 1`);
    await world.rest.deleteVolume(volume.id);
    assert.equal(await second.stop(), 0, second.logTail());
  });
});
