/** What tests read from the control plane again and again. */
import type { AttachmentView, NodeView, VolumeView } from '../routes/schemas.ts';
import type { Cluster } from './cluster.ts';
import type { FakeAgent, FakeNode } from './fakes.ts';

export async function volumeOf(cluster: Cluster, id: string): Promise<VolumeView> {
  return (await cluster.request<VolumeView>('GET', `/v1/volumes/${id}`)).body;
}

export async function statesOf(cluster: Cluster, volumeId: string): Promise<Record<string, string>> {
  const { replicas } = await volumeOf(cluster, volumeId);
  return Object.fromEntries(replicas.map(({ node, state }) => [node, state]));
}

export async function nodeOf(cluster: Cluster, id: string): Promise<NodeView> {
  const { body } = await cluster.request<NodeView[]>('GET', '/v1/nodes');
  return body.find((node) => node.id === id)!;
}

export async function attach(cluster: Cluster, body: Record<string, unknown>): Promise<AttachmentView> {
  const answer = await cluster.request<AttachmentView>('POST', '/v1/attachments', body);
  if (answer.status !== 201) throw new Error(JSON.stringify(answer.body));
  return answer.body;
}

export async function takeOffline(cluster: Cluster, member: FakeNode | FakeAgent): Promise<void> {
  await member.disconnect();
  await cluster.until(async () => {
    const kind = member.id.startsWith('node') ? 'nodes' : 'agents';
    const { body } = await cluster.request<{ id: string; state: string }[]>('GET', `/v1/${kind}`);
    return body.some(({ id, state }) => id === member.id && state === 'offline');
  });
}
