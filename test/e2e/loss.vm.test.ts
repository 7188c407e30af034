/** Storage nodes that die or fall silent under load: the application sees nothing of it, and who is back is rebuilt. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Volume } from './rest.ts';
import { eventually, fioVerify, type LabWorld, MIB, World } from './world.ts';

const SIZE_BYTES = 128 * MIB;
const REPLICA_TIMEOUT_MS = 2000;

describe('the loss of a storage node', () => {
  let world: LabWorld;
  before(async () => {
    world = await World.startLab({ agent: { replicaTimeoutMs: REPLICA_TIMEOUT_MS } });
  });
  after(() => world?.close());

  /** Starts fio on the device and sends the signal to one of the volume's nodes when it has taken a quarter of the data. */
  async function signalUnderLoad(volume: Volume, device: string, signal: NodeJS.Signals): Promise<string> {
    const victim = volume.replicas[0]!.node;
    const series = 'blockwire_node_written_bytes_total';
    const before = await world.nodeMetric(victim, series);
    const fio = world.machine.start(fioVerify(device, { sizeBytes: SIZE_BYTES }), { timeoutMs: 5 * 60_000 });
    await eventually(
      () => world.nodeMetric(victim, series),
      (bytes) => bytes - before > SIZE_BYTES / 4,
    );
    world.cluster.signalNode(victim, signal);
    const { exitCode, output } = await fio.done;
    assert.equal(exitCode, 0, `${output}\n${world.describe()}`);
    assert.match(output, /err= 0/);
    return victim;
  }

  function assertLost(before: Volume, now: Volume, victim: string): void {
    assert.equal(now.degraded, true);
    assert.equal(now.epoch, before.epoch + 1);
    for (const { node, state } of now.replicas) assert.equal(state, node === victim ? 'stale' : 'inSync');
  }

  async function assertIdentical(volume: Volume): Promise<void> {
    const [one, other] = await world.replicaDigests(volume);
    assert.equal(one, other, 'the replicas differ');
  }

  it('a node killed under load: no I/O error, its replica stale, the device usable, also attached anew; rebuilt once the node is back', async () => {
    const [volume, { id, device }] = await world.attachNew('killed', SIZE_BYTES);
    const victim = await signalUnderLoad(volume, device, 'SIGKILL');
    assertLost(volume, await world.rest.volume(volume.id), victim);
    assert.equal(await world.agentMetric('blockwire_agent_errors_total', { volume: volume.id }), 0);
    const control = await (await fetch(`${world.rest.url}/metrics`)).text();
    assert.match(control, /^blockwire_control_replicas\{state="stale"\} 1$/m);

    await world.shell(`mkfs.ext4 -q ${device} && mkdir -p /run/loss && mount ${device} /run/loss`);
    await world.shell('cp -r agent /run/loss && umount /run/loss');
    await world.rest.detach(id);
    const again = await world.rest.attach({ volume: volume.id });
    await world.shell(`fsck.ext4 -fn ${again.device} && mount -o ro ${again.device} /run/loss`);
    await world.shell('diff -r agent /run/loss/agent && umount /run/loss');
    await world.rest.detach(again.id);
    assertLost(volume, await world.rest.volume(volume.id), victim);

    await world.cluster.restart(victim);
    await world.inSync([volume]);
    await assertIdentical(volume);
    await world.rest.deleteVolume(volume.id);
  });

  it('a node that falls silent under load is given up after the set time, and rebuilt when it goes on', async () => {
    const [volume, { id, device }] = await world.attachNew('silent', SIZE_BYTES);
    const victim = await signalUnderLoad(volume, device, 'SIGSTOP');
    assertLost(volume, await world.rest.volume(volume.id), victim);

    // What it had received before, it writes now.
    world.cluster.signalNode(victim, 'SIGCONT');
    await world.shell(fioVerify(device, { sizeBytes: SIZE_BYTES / 4 }));
    await world.inSync([volume]);
    await world.rest.detach(id);
    await assertIdentical(volume);
    await world.rest.deleteVolume(volume.id);
  });
});
