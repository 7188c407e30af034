/** Storage nodes that die and come back: what they missed is copied, nothing else, and the application sees nothing of it. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { metric } from './cluster.ts';
import { longestStall } from './stall.ts';
import { type Happening, runStorm, startStormWorld } from './storm.ts';
import { type LabWorld, MIB } from './world.ts';

const STORM: readonly Happening[] = ['kill', 'again', 'source', 'kill', 'agent', 'control', 'everything'];
const LARGE_BYTES = 10 * 1024 * MIB;
const BEFORE_MIB = 128;
const MISSED_MIB = 64;
/** Several of the agent's checkpoints would fit. */
const QUIET_MS = 4000;

describe('rebuilding', () => {
  let world: LabWorld;
  before(async () => {
    world = await startStormWorld();
  });
  after(() => world?.close());

  it('processes killed in turn under load: no error, file system clean, replicas in sync and identical', async (t) => {
    const happenings = [...STORM];
    const report = await runStorm(world, {
      seed: 11,
      next: () => happenings.shift() ?? null,
      onProgress: (message) => t.diagnostic(message),
    });
    assert.equal(report.rebuiltMs.length, STORM.length);
    assert.equal(report.agentErrors, 0);
    assert.ok(report.fioRuns >= 1 && report.copies >= 1, JSON.stringify(report));
    for (const digests of report.digests) assert.equal(new Set(digests).size, 1, 'the replicas differ');
  });

  it('after an outage no more is copied than what was missed', async (t) => {
    const [volume, { id, device }] = await world.attachNew('large', LARGE_BYTES);
    const [victim, source] = volume.replicas.map(({ node }) => node) as [string, string];
    const fill = (mib: number): Promise<string> =>
      world.shell(
        `fio --name=fill --filename=${device} --rw=randwrite --bs=1m --size=10g --io_size=${mib}m --direct=1 ` +
          '--ioengine=libaio --iodepth=4 --randrepeat=0 --end_fsync=1 --refill_buffers',
      );
    const sent = async (): Promise<number> =>
      metric(await world.cluster.nodeMetrics(source), 'blockwire_node_read_bytes_total');
    await fill(BEFORE_MIB);
    // Else what the writer's last second has touched is copied with it, as what is under intent at a death is.
    await checkpointed(world);
    await world.cluster.kill(victim);
    await fill(MISSED_MIB);
    const sentBefore = await sent();
    await world.cluster.restart(victim);
    await world.inSync([volume]);
    const moved = (await sent()) - sentBefore;
    t.diagnostic(`${MISSED_MIB} MiB missed, ${(moved / MIB).toFixed(1)} MiB copied`);
    assert.ok(moved >= 0.9 * MISSED_MIB * MIB, `only ${moved} bytes were copied`);
    assert.ok(moved <= 1.2 * MISSED_MIB * MIB, `${moved} bytes were copied`);
    await world.rest.detach(id);
    // It looks only at what is allocated.
    const files = volume.replicas.map(({ node }) => world.cluster.dataFile(node, volume.id));
    await promisify(execFile)('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', ...files]);
    await world.rest.deleteVolume(volume.id);
  });

  it('how long the longest I/O takes when the process of a replica is killed', async (t) => {
    const [volume, { id, device }] = await world.attachNew('stall', 16 * MIB);
    const nothing = await longestStall(world, device, { seconds: 8, happen: async () => {} });
    const { node } = volume.replicas[0]!;
    const killed = await longestStall(world, device, { seconds: 8, happen: () => world.cluster.kill(node) });
    t.diagnostic(`undisturbed ${JSON.stringify(nothing)}, killed ${JSON.stringify(killed)}`);
    await world.cluster.restart(node);
    await world.inSync([volume]);
    await world.rest.detach(id);
    await world.rest.deleteVolume(volume.id);
  });
});

/** Resolves when the agent has nothing more to checkpoint: the nodes hold no intents of an idle device. */
async function checkpointed(world: LabWorld): Promise<void> {
  let before = Number.NaN;
  const count = (): Promise<number> => world.agentMetric('blockwire_agent_checkpoints_total');
  for (let now = await count(); now !== before; now = await count()) {
    before = now;
    await sleep(QUIET_MS);
  }
}
