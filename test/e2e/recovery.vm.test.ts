/** Devices outlive their agent: killed, replaced, or never coming back. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { runTakeovers } from './takeovers.ts';
import { eventually, MIB, World } from './world.ts';

const ORPHANS = 'node agent/orphans.ts --json';
/** A device that another ublk server might have added: nothing of it says that it is ours. */
const ADD_FOREIGN = `node --input-type=module -e "
  const { addDevice } = await import('$PWD/agent/ublk/control.ts');
  const asked = { id: 40, queueCount: 1, queueDepth: 16, ioSizeBytesMax: 65536, features: 0, marks: [0n, 0n, 0n] };
  await addDevice(asked);
"`;

describe('recovery', () => {
  let world: World;
  before(async () => {
    world = await World.start();
  });
  after(() => world?.close());

  for (const [queues, datapath] of [
    [1, 'fused'],
    [2, 'copy'],
  ] as const) {
    it(`${datapath}, ${queues} queues: agents killed and replaced under load: no error, nothing lost, same devices`, async (t) => {
      const plan = { kills: queues === 1 ? 5 : 2, handovers: queues === 1 ? 2 : 1, seed: 7 };
      const report = await runTakeovers(world, { ...plan, device: { queues, datapath } });
      t.diagnostic(JSON.stringify(report));
      assert.equal(report.agentErrors, 0);
      assert.equal(report.killGapsMs.length, plan.kills);
      assert.equal(report.handoverPausesMs.length, plan.handovers);
      assert.ok(report.handoverPausesMs.every((pauseMs) => pauseMs > 0));
      assert.ok(report.fioRuns >= 1);
      assert.equal(new Set(report.digests).size, 1, 'the replicas differ');
      assert.equal(report.devicesAfter, report.devicesBefore);
    });
  }

  it('a second agent of the same name is refused while the first one runs', async () => {
    const id = '--id agent-1 --control 127.0.0.1:1 --metrics-port 0';
    const { exitCode, output } = await world.machine.run(`node agent/main.ts ${id}`);
    assert.equal(exitCode, 1);
    assert.match(output, /BW_CONFLICT: agent agent-1 runs already/);
  });

  it('a device whose attachment is gone is an orphan; only orphans are removed', async () => {
    const rest = `--rest http://${world.machine.hostAddress}:${new URL(world.rest.url).port}`;
    const list = async (options = ''): Promise<[string, string][]> => {
      const rows = JSON.parse(await world.shell(`${ORPHANS} ${rest} ${options}`)) as {
        device: string;
        state: string;
      }[];
      return rows.map(({ device, state }) => [device, state]);
    };
    const [kept, first] = await world.attachNew('kept', 16 * MIB);
    const [doomed, second] = await world.attachNew('doomed', 16 * MIB);
    await world.shell(ADD_FOREIGN);
    assert.deepEqual(
      (await list('--remove')).map(([, state]) => state),
      ['served', 'served'],
    );
    await world.shell(`test -e ${first.device} && test -e ${second.device}`);

    world.agent.process.kill('SIGKILL');
    await world.agent.process.done;
    const reader = world.machine.start(`dd if=${second.device} of=/dev/null bs=4k count=1 iflag=direct`);
    assert.deepEqual(await list(), [
      [first.device, 'attached'],
      [second.device, 'attached'],
    ]);
    await eventually(
      () => world.rest.agents(),
      (agents) => agents.every(({ state }) => state === 'offline'),
    );
    await world.rest.detach(second.id, { force: true });
    assert.deepEqual(await list(), [
      [first.device, 'attached'],
      [second.device, 'orphan'],
    ]);
    assert.deepEqual(await list('--remove'), [
      [first.device, 'attached'],
      [second.device, 'removed'],
    ]);
    assert.notEqual((await reader.done).exitCode, 0, 'who waited for the orphan got an error');
    await world.shell(`test ! -e ${second.device} && test -e /dev/ublkc40`);

    await world.restartAgent();
    assert.deepEqual(
      world.agent.takenOver.map(({ device }) => device),
      [first.device],
    );
    await world.shell(`dd if=${first.device} of=/dev/null bs=4k count=1 iflag=direct`);
    await world.rest.detach(first.id);
    for (const { id } of [kept, doomed]) await world.rest.deleteVolume(id);
  });

  it('an agent that is asked to end leaves a mounted device to the next one, and what is written waits', async () => {
    const [volume, { id, device }] = await world.attachNew('mounted', 32 * MIB);
    await world.shell(`mkfs.ext4 -q ${device} && mkdir -p /run/m && mount ${device} /run/m`);
    assert.equal(await world.agent.stop(), 0, world.describe());
    const writer = world.machine.start('cp -r agent /run/m && sync -f /run/m && diff -r agent /run/m/agent');
    await world.restartAgent();
    assert.equal((await writer.done).exitCode, 0);
    assert.equal((await world.rest.attachment(id)).state, 'attached');
    await world.shell(`umount /run/m && fsck.ext4 -fn ${device}`);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });
});
