/** From whom a node copies or with whom it compares: what every such command says. */
import type { Context, ResyncOrder } from './context.ts';
import { nodes, type VolumeRecord } from './records.ts';

export async function resyncOrder(
  { store, exportNames }: Context,
  volume: VolumeRecord,
  sourceNodeId: string,
): Promise<ResyncOrder> {
  const { id: volumeId, generation, epoch } = volume;
  const source = (await nodes.get(store, sourceNodeId))?.value;
  const sourceAddress = source?.peerAddress ?? source?.nbdAddress ?? '';
  const exportName = exportNames.nameOf(volume, 'peer');
  return { volumeId, generation, epoch, sourceNodeId, sourceAddress, exportName };
}
