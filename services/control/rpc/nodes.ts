/** The Nodes service: storage nodes register, stay online, take commands and complete them. */
import type { NodeCommandInput, NodesHandlers } from '@blockwire/proto/control/types.ts';
import type { Context, NodeAction } from '../domain/context.ts';
import type { Damages } from '../domain/damages.ts';
import type { Rebuilder } from '../domain/rebuilds.ts';
import { registerNode, updateNodeSpace } from '../domain/registry.ts';
import type { Scrubber } from '../domain/scrubs.ts';
import { checkAddress, checkInteger, checkList, checkMemberId, checkResourceId, checkText } from './check.ts';
import { reportedError, unaryHandler } from './errors.ts';
import { openWatch } from './watch.ts';

export interface NodesParts {
  readonly context: Context;
  readonly rebuilder: Rebuilder;
  readonly scrubber: Scrubber;
  readonly damages: Damages;
  /** What every node is told to verify capabilities with. */
  readonly capabilityKey: Buffer;
}

export function nodesHandlers({
  context,
  rebuilder,
  scrubber,
  damages,
  capabilityKey,
}: NodesParts): NodesHandlers {
  const { nodeFleet, log } = context;
  // The generated handler type is open to further methods; the seven here are checked one by one.
  const handlers: Pick<
    NodesHandlers,
    'Register' | 'Heartbeat' | 'Watch' | 'Complete' | 'ReportRebuild' | 'ReportDamage' | 'ReportScrub'
  > = {
    Register: unaryHandler(log, async (request) => {
      const node = {
        id: checkMemberId('node_id', request.nodeId),
        nbdAddress: checkAddress('nbd_address', request.nbdAddress),
        ...(request.peerAddress === ''
          ? {}
          : { peerAddress: checkAddress('peer_address', request.peerAddress) }),
        zone: checkText('zone', request.zone),
        version: checkText('version', request.version),
        capacityBytes: checkInteger('capacity_bytes', request.capacityBytes),
        freeBytes: checkInteger('free_bytes', request.freeBytes),
      };
      const replicas = checkList('replicas', request.replicas).map((replica) => ({
        volumeId: checkText('volume_id', replica.volumeId),
        generation: checkInteger('generation', replica.generation),
        epoch: checkInteger('epoch', replica.epoch),
        unclean: replica.unclean,
      }));
      rebuilder.nodeRestarted(node.id);
      scrubber.nodeRestarted(node.id);
      await registerNode(context, node, replicas);
      return { heartbeatIntervalMs: nodeFleet.heartbeatIntervalMs, capabilityKey };
    }),

    Heartbeat: unaryHandler(log, async (request) => {
      const nodeId = checkMemberId('node_id', request.nodeId);
      const rebuilds = checkList('rebuilds', request.rebuilds).map((rebuild) => ({
        volumeId: checkText('volume_id', rebuild.volumeId),
        joinedEpoch: checkInteger('joined_epoch', rebuild.joinedEpoch),
        copiedBytes: checkInteger('copied_bytes', rebuild.copiedBytes),
        totalBytes: checkInteger('total_bytes', rebuild.totalBytes),
      }));
      rebuilder.progress.note(nodeId, rebuilds);
      await updateNodeSpace(context, {
        nodeId,
        capacityBytes: checkInteger('capacity_bytes', request.capacityBytes),
        freeBytes: checkInteger('free_bytes', request.freeBytes),
      });
      return {};
    }),

    Watch: (call) =>
      openWatch({
        call,
        fleet: nodeFleet,
        memberId: () => checkMemberId('node_id', call.request.nodeId),
        encode: encodeCommand,
      }),

    Complete: unaryHandler(log, async (request) => {
      const nodeId = checkMemberId('node_id', request.nodeId);
      if (request.result) {
        const outcome = reportedError(request.result) ?? { result: undefined };
        nodeFleet.complete(nodeId, request.result.commandId, outcome);
      }
      return {};
    }),

    ReportRebuild: unaryHandler(log, async (request) => {
      const error = checkText('error', request.error);
      await rebuilder.ended({
        nodeId: checkMemberId('node_id', request.nodeId),
        volumeId: checkResourceId('volume_id', request.volumeId),
        joinedEpoch: checkInteger('joined_epoch', request.joinedEpoch),
        sourceNodeId: checkMemberId('source_node_id', request.sourceNodeId),
        error: error === '' ? null : error,
      });
      return {};
    }),

    ReportDamage: unaryHandler(log, async (request) => {
      damages.report({
        nodeId: checkMemberId('node_id', request.nodeId),
        volumeId: checkResourceId('volume_id', request.volumeId),
        regions: checkList('regions', request.regions).map((region) => checkInteger('regions', region)),
      });
      return {};
    }),

    ReportScrub: unaryHandler(log, async (request) => {
      const error = checkText('error', request.error);
      await scrubber.ended({
        nodeId: checkMemberId('node_id', request.nodeId),
        volumeId: checkResourceId('volume_id', request.volumeId),
        scannedBytes: checkInteger('scanned_bytes', request.scannedBytes),
        mismatchedRegions: checkInteger('mismatched_regions', request.mismatchedRegions),
        repairedRegions: checkInteger('repaired_regions', request.repairedRegions),
        error: error === '' ? null : error,
      });
      return {};
    }),
  };
  return handlers as NodesHandlers;
}

const WIRE_ROLE = { inSync: 'REPLICA_STATE_IN_SYNC', rebuilding: 'REPLICA_STATE_REBUILDING' } as const;

function encodeCommand(commandId: string, action: NodeAction): NodeCommandInput {
  switch (action.kind) {
    case 'installEpoch':
      return { commandId, installEpoch: { ...action, role: WIRE_ROLE[action.role] } };
    case 'reconcile':
      return { commandId, reconcile: { order: action } };
    case 'rebuild': {
      const { sinceEpoch, joinedEpoch, bytesPerSecond } = action;
      return { commandId, rebuild: { order: action, sinceEpoch, joinedEpoch, bytesPerSecond } };
    }
    case 'scrub':
      return { commandId, scrub: { order: action, bytesPerSecond: action.bytesPerSecond } };
    case 'repair':
      return { commandId, repair: { order: action, regions: [...action.regions] } };
    default:
  }
  const { kind, ...body } = action;
  return { commandId, [kind]: body };
}
