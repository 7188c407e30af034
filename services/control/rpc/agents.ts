/** The Agents service: agents register, stay online, take commands, and report lost replicas. */
import type {
  AgentCommandInput,
  AgentsHandlers,
  AttachedDevice,
  MembershipInput,
  IoState as WireIoState,
} from '@blockwire/proto/control/types.ts';
import type { Attachments, IoState } from '../domain/attachments.ts';
import type { AgentAction, AttachAction, Context, DeviceReport, Membership } from '../domain/context.ts';
import { replicaLost } from '../domain/membership.ts';
import { registerAgent } from '../domain/registry.ts';
import { checkInteger, checkList, checkMemberId, checkResourceId, checkText } from './check.ts';
import { reportedError, unaryHandler } from './errors.ts';
import { openWatch } from './watch.ts';

export function agentsHandlers(context: Context, attachments: Attachments): AgentsHandlers {
  const { agentFleet, log } = context;
  // The generated handler type is open to further methods; the six here are checked one by one.
  const handlers: Pick<
    AgentsHandlers,
    'Register' | 'Heartbeat' | 'Watch' | 'Complete' | 'ReportReplicaLost' | 'ResumeAttachment'
  > = {
    Register: unaryHandler(log, async (request) => {
      const agent = {
        id: checkMemberId('agent_id', request.agentId),
        host: checkText('host', request.host),
        version: checkText('version', request.version),
        datapaths: checkList('datapaths', request.datapaths).map((path) => checkText('datapaths', path)),
      };
      const devices = checkList('devices', request.devices).map(toDevice);
      await registerAgent(context, agent);
      await attachments.reconcile(agent.id, devices);
      return { heartbeatIntervalMs: agentFleet.heartbeatIntervalMs };
    }),

    Heartbeat: unaryHandler(log, async (request) => {
      const agentId = checkMemberId('agent_id', request.agentId);
      agentFleet.heartbeat(agentId);
      const devices = checkList('devices', request.devices);
      attachments.noteIo(
        agentId,
        new Map(devices.map(({ attachmentId, io }) => [attachmentId, IO_STATE[io]])),
      );
      return {};
    }),

    Watch: (call) =>
      openWatch({
        call,
        fleet: agentFleet,
        memberId: () => checkMemberId('agent_id', call.request.agentId),
        encode: encodeCommand,
      }),

    Complete: unaryHandler(log, async (request) => {
      const agentId = checkMemberId('agent_id', request.agentId);
      if (request.result) {
        const device = request.device ? toDevice(request.device) : null;
        const outcome = reportedError(request.result) ?? { result: device };
        agentFleet.complete(agentId, request.result.commandId, outcome);
      }
      return {};
    }),

    ReportReplicaLost: unaryHandler(log, async (request) =>
      encodeMembership(
        await replicaLost(context, {
          agentId: checkMemberId('agent_id', request.agentId),
          volumeId: checkResourceId('volume_id', request.volumeId),
          generation: checkInteger('generation', request.generation),
          epoch: checkInteger('epoch', request.epoch),
          nodeId: checkMemberId('node_id', request.nodeId),
          reason: checkText('reason', request.reason),
        }),
      ),
    ),

    ResumeAttachment: unaryHandler(log, async (request) =>
      encodeAttach(
        await attachments.resume({
          agentId: checkMemberId('agent_id', request.agentId),
          id: checkResourceId('attachment_id', request.attachmentId),
        }),
      ),
    ),
  };
  return handlers as AgentsHandlers;
}

const WIRE_STATE = {
  inSync: 'REPLICA_STATE_IN_SYNC',
  rebuilding: 'REPLICA_STATE_REBUILDING',
  stale: 'REPLICA_STATE_STALE',
} as const;

const IO_STATE: Readonly<Record<WireIoState, IoState>> = {
  IO_STATE_UNSPECIFIED: 'unknown',
  IO_STATE_OK: 'ok',
  IO_STATE_WAITING: 'waiting',
  IO_STATE_FAILING: 'failing',
  IO_STATE_RECOVERING: 'recovering',
};

function encodeMembership(membership: Membership): MembershipInput {
  return {
    ...membership,
    replicas: membership.replicas.map((replica) => ({ ...replica, state: WIRE_STATE[replica.state] })),
  };
}

function encodeCommand(commandId: string, action: AgentAction): AgentCommandInput {
  if (action.kind === 'detach') {
    const { attachmentId, volumeId, force } = action;
    return { commandId, detach: { attachmentId, volumeId, force } };
  }
  if (action.kind === 'resize') {
    const { attachmentId, volumeId, sizeBytes } = action;
    return { commandId, resize: { attachmentId, volumeId, sizeBytes } };
  }
  if (action.kind === 'holdWrites') {
    const { attachmentId, holdMsMax } = action;
    return { commandId, holdWrites: { attachmentId, holdMsMax } };
  }
  if (action.kind === 'releaseWrites') {
    return { commandId, releaseWrites: { attachmentId: action.attachmentId } };
  }
  if (action.kind === 'membership') {
    const { attachmentId, membership } = action;
    return { commandId, membership: { attachmentId, membership: encodeMembership(membership) } };
  }
  return { commandId, attach: encodeAttach(action) };
}

function encodeAttach({ attachmentId, sizeBytes, datapath, volumeName, options, membership }: AttachAction) {
  return { attachmentId, sizeBytes, datapath, volumeName, options, membership: encodeMembership(membership) };
}

function toDevice({ attachmentId, volumeId, device, datapath }: AttachedDevice): DeviceReport {
  return {
    attachmentId,
    volumeId,
    device: checkText('device', device),
    datapath: checkText('datapath', datapath),
  };
}
