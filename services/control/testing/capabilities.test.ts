/** Capabilities in the export names that agents, nodes and users are given. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Capability, CapabilityVerifier } from '@blockwire/shared/capability.ts';
import { parseExportName } from '@blockwire/shared/export-name.ts';
import type { AttachmentView, VolumeView } from '../routes/schemas.ts';
import { type Cluster, createVolume, startCluster } from './cluster.ts';

const HOUR_S = 3600;
const DAY_S = 24 * HOUR_S;

/** What a node makes of an export name. */
function capabilityOf(cluster: Cluster, exportName: string): Capability {
  const { capability } = parseExportName(exportName);
  const verifier = new CapabilityVerifier(cluster.nodes[0]!.capabilityKey);
  return verifier.verify(capability ?? '', Date.now() / 1000);
}

function ofUri(cluster: Cluster, uri: string): Capability {
  const path = new URL(uri).pathname.slice(1);
  assert.match(path, /^[A-Za-z0-9._%-]+$/, 'every NBD client takes it as one export name');
  return capabilityOf(cluster, decodeURIComponent(path));
}

function assertLife(capability: Capability, seconds: number): void {
  const left = capability.expiresAt - Date.now() / 1000;
  assert.ok(left > seconds - 60 && left <= seconds + HOUR_S, `${left} s`);
}

test('every node is told the same key, and it outlives the process', async (t) => {
  const cluster = await startCluster(t);
  const [first, second] = cluster.nodes;
  assert.equal(first!.capabilityKey.length, 32);
  assert.deepEqual(second!.capabilityKey, first!.capabilityKey);
  const before = Buffer.from(first!.capabilityKey);
  await cluster.restart();
  await cluster.reconnectAll();
  assert.deepEqual(Buffer.from(first!.capabilityKey), before);
});

test('a URI is for clients while the volume is free, and for reading while it is attached', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1 });
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  for (const { uri } of volume.replicas) {
    const { expiresAt, ...claims } = ofUri(cluster, uri);
    assert.deepEqual(claims, { volumeId: volume.id, generation: 1, mode: 'client' });
    assertLife({ expiresAt, ...claims }, DAY_S);
  }
  await cluster.request('POST', '/v1/attachments', { volume: volume.id });
  const { body: attached } = await cluster.request<VolumeView>('GET', `/v1/volumes/${volume.id}`);
  for (const { uri } of attached.replicas) {
    const { generation, mode } = ofUri(cluster, uri);
    assert.deepEqual([generation, mode], [2, 'reader']);
  }
});

test('the agent is given the writer’s capability of its generation', async (t) => {
  const cluster = await startCluster(t, { agentCount: 1 });
  const [agent] = cluster.agents;
  const { body: volume } = await createVolume(cluster, { name: 'data' });
  const { body: attached } = await cluster.request<AttachmentView>('POST', '/v1/attachments', {
    volume: volume.id,
  });
  const resumed = await agent!.resume(attached.id);
  for (const [membership, generation] of [
    [agent!.commands[0]!.attach!.membership!, 2],
    [resumed.membership!, 3],
  ] as const) {
    for (const { exportName } of membership.replicas) {
      const capability = capabilityOf(cluster, exportName);
      const { volumeId, mode } = capability;
      assert.deepEqual([volumeId, capability.generation, mode], [volume.id, generation, 'writer']);
      assertLife(capability, 30 * DAY_S);
    }
  }
});
