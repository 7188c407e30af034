/**
 * Replicas that move and come back, with real nodes and no device: what other people's NBD clients wrote is the same on every
 * replica afterwards. Needs qemu-io and nbdcopy.
 */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { RestClient } from './rest/client.ts';
import type { Volume } from './rest/schema.ts';

const LAUNCHER = fileURLToPath(new URL('./blockwire.mjs', import.meta.url));
const MIB = 2 ** 20;
const SIZE = 64 * MIB;
const execute = promisify(execFile);

async function startUp(
  t: TestContext,
  environment: Record<string, string> = {},
): Promise<{ client: RestClient; rest: string; pids: Map<string, number> }> {
  const dir = mkdtempSync(join(tmpdir(), 'blockwire-rebuild-'));
  const args = ['up', '--dir', dir, '--nodes', '3', '--rest-port', '0', '--no-agent', '--json'];
  const env = { ...process.env, ...environment };
  const child = spawn(LAUNCHER, args, { stdio: ['ignore', 'pipe', 'ignore'], env });
  t.after(async () => {
    const closed = once(child, 'close');
    child.kill('SIGTERM');
    await closed;
    rmSync(dir, { recursive: true });
  });
  const [line] = await once(createInterface({ input: child.stdout }), 'line');
  const ready = JSON.parse(String(line)) as { rest: string; nodes: { id: string; pid: number }[] };
  const pids = new Map(ready.nodes.map(({ id, pid }) => [id, pid]));
  return { client: new RestClient(ready.rest), rest: ready.rest, pids };
}

/** The same at every replica, as a mirroring client would. */
async function write(volume: Volume, commands: readonly string[]): Promise<void> {
  for (const { uri } of volume.replicas) {
    const script = [...commands, 'flush'].flatMap((command) => ['-c', command]);
    await execute('qemu-io', ['-f', 'raw', ...script, uri], { timeout: 30_000 });
  }
}

async function digests(volume: Volume): Promise<string[]> {
  const found: string[] = [];
  for (const { uri } of volume.replicas) {
    const { stdout } = await execute('nbdcopy', [uri, '-'], {
      ...{ encoding: 'buffer', maxBuffer: 2 * SIZE, timeout: 60_000 },
    });
    assert.equal(stdout.length, SIZE);
    found.push(createHash('sha256').update(stdout).digest('hex'));
  }
  return found;
}

async function until(client: RestClient, id: string, isDone: (volume: Volume) => boolean): Promise<Volume> {
  for (;;) {
    const volume = await client.findVolume(id);
    if (isDone(volume)) return volume;
    await sleep(200);
  }
}

/** What `blockwire events` tells of a volume from its beginning, up to the first event of this type. */
async function events(rest: string, volume: Volume, last: string): Promise<string[]> {
  const args = ['--rest', rest, 'events', '--volume', volume.id, '--after', '0', '--json'];
  const child = spawn(LAUNCHER, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const found: string[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const { type, node = '' } = JSON.parse(line) as { type: string; node?: string };
    found.push(`${type} ${node}`.trim());
    if (type === last) break;
  }
  child.kill();
  return found;
}

const nodesOf = ({ replicas }: Volume): string[] => replicas.map(({ node }) => node).sort();

test('a drained node is emptied, and its replica is the same elsewhere', { timeout: 120_000 }, async (t) => {
  const { client, rest } = await startUp(t);
  const volume = await client.createVolume({ name: 'data', sizeBytes: SIZE, replicas: 2 });
  await write(volume, ['write -P 7 1M 4M', 'write -P 9 40M 64k', 'discard 2M 1M']);
  const [before] = await digests(volume);
  const drained = volume.replicas[0]!.node;
  const env = { ...process.env, BLOCKWIRE_REST: rest };
  const { stdout } = await execute(LAUNCHER, ['node', 'drain', drained, '--wait'], { env });
  assert.equal(stdout, `${drained} is empty\n`);
  const moved = await client.findVolume(volume.id);
  assert.ok(!nodesOf(moved).includes(drained));
  assert.equal(moved.replicas.length, 2);
  assert.equal(moved.degraded, false);
  assert.deepEqual(await digests(moved), [before, before]);
  const added = nodesOf(moved).find((node) => !nodesOf(volume).includes(node));
  assert.deepEqual(await events(rest, volume, 'replica.deleted'), [
    ...['volume.created', 'volume.available', `replica.replacing ${added}`],
    ...[`replica.rebuilding ${added}`, `replica.inSync ${added}`],
    ...[`replica.stale ${drained}`, `replica.removed ${drained}`, `replica.deleted ${drained}`],
  ]);
});

test('a node that was killed is replaced by another after its time', { timeout: 120_000 }, async (t) => {
  const { client, pids } = await startUp(t, { BLOCKWIRE_CONTROL_REPLACE_AFTER: '2s' });
  const volume = await client.createVolume({ name: 'data', sizeBytes: SIZE, replicas: 2 });
  await write(volume, ['write -P 5 0 1M', 'write -P 6 63M 1M']);
  const [before] = await digests(volume);
  const killed = volume.replicas[1]!.node;
  process.kill(pids.get(killed)!, 'SIGKILL');
  const isMoved = (now: Volume): boolean => !nodesOf(now).includes(killed) && now.degraded === false;
  const moved = await until(client, volume.id, isMoved);
  assert.deepEqual(await digests(moved), [before, before]);
});
