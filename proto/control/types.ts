/**
 * The messages of the control protocol as TypeScript types. `X` is a received message (every field there),
 * `XInput` one to be sent (absent fields take their default).
 */
export type { AgentCommand, AgentCommandInput } from '../build/blockwire/control/v1/AgentCommand.ts';
export type {
  AgentCommandResult,
  AgentCommandResultInput,
} from '../build/blockwire/control/v1/AgentCommandResult.ts';
export type { AgentHeartbeat, AgentHeartbeatInput } from '../build/blockwire/control/v1/AgentHeartbeat.ts';
export type { AgentsClient, AgentsDefinition, AgentsHandlers } from '../build/blockwire/control/v1/Agents.ts';
export type { AttachedDevice, AttachedDeviceInput } from '../build/blockwire/control/v1/AttachedDevice.ts';
export type { AttachVolume, AttachVolumeInput } from '../build/blockwire/control/v1/AttachVolume.ts';
export type { CommandResult, CommandResultInput } from '../build/blockwire/control/v1/CommandResult.ts';
export type { CreateReplica, CreateReplicaInput } from '../build/blockwire/control/v1/CreateReplica.ts';
export type { DeleteReplica, DeleteReplicaInput } from '../build/blockwire/control/v1/DeleteReplica.ts';
export type { DetachVolume, DetachVolumeInput } from '../build/blockwire/control/v1/DetachVolume.ts';
export type { DeviceOptions, DeviceOptionsInput } from '../build/blockwire/control/v1/DeviceOptions.ts';
export type { DeviceStatus, DeviceStatusInput } from '../build/blockwire/control/v1/DeviceStatus.ts';
export type { Empty } from '../build/blockwire/control/v1/Empty.ts';
export type { HoldWrites, HoldWritesInput } from '../build/blockwire/control/v1/HoldWrites.ts';
export type { InstallEpoch, InstallEpochInput } from '../build/blockwire/control/v1/InstallEpoch.ts';
export type { IoState } from '../build/blockwire/control/v1/IoState.ts';
export type { Membership, MembershipInput } from '../build/blockwire/control/v1/Membership.ts';
export type { NodeCommand, NodeCommandInput } from '../build/blockwire/control/v1/NodeCommand.ts';
export type {
  NodeCommandResult,
  NodeCommandResultInput,
} from '../build/blockwire/control/v1/NodeCommandResult.ts';
export type { NodeHeartbeat, NodeHeartbeatInput } from '../build/blockwire/control/v1/NodeHeartbeat.ts';
export type { NodesClient, NodesDefinition, NodesHandlers } from '../build/blockwire/control/v1/Nodes.ts';
export type { Rebuild, RebuildInput } from '../build/blockwire/control/v1/Rebuild.ts';
export type { RebuildProgress, RebuildProgressInput } from '../build/blockwire/control/v1/RebuildProgress.ts';
export type { Reconcile, ReconcileInput } from '../build/blockwire/control/v1/Reconcile.ts';
export type {
  RegisterAgentRequest,
  RegisterAgentRequestInput,
} from '../build/blockwire/control/v1/RegisterAgentRequest.ts';
export type { RegisterAgentResponse } from '../build/blockwire/control/v1/RegisterAgentResponse.ts';
export type {
  RegisterNodeRequest,
  RegisterNodeRequestInput,
} from '../build/blockwire/control/v1/RegisterNodeRequest.ts';
export type { RegisterNodeResponse } from '../build/blockwire/control/v1/RegisterNodeResponse.ts';
export type { ReleaseWrites, ReleaseWritesInput } from '../build/blockwire/control/v1/ReleaseWrites.ts';
export type { Repair, RepairInput } from '../build/blockwire/control/v1/Repair.ts';
export type { ReplicaMember, ReplicaMemberInput } from '../build/blockwire/control/v1/ReplicaMember.ts';
export type { ReplicaReport, ReplicaReportInput } from '../build/blockwire/control/v1/ReplicaReport.ts';
export type { ReplicaState } from '../build/blockwire/control/v1/ReplicaState.ts';
export type {
  ReportDamageRequest,
  ReportDamageRequestInput,
} from '../build/blockwire/control/v1/ReportDamageRequest.ts';
export type {
  ReportRebuildRequest,
  ReportRebuildRequestInput,
} from '../build/blockwire/control/v1/ReportRebuildRequest.ts';
export type {
  ReportReplicaLostRequest,
  ReportReplicaLostRequestInput,
} from '../build/blockwire/control/v1/ReportReplicaLostRequest.ts';
export type {
  ReportScrubRequest,
  ReportScrubRequestInput,
} from '../build/blockwire/control/v1/ReportScrubRequest.ts';
export type { ResizeDevice } from '../build/blockwire/control/v1/ResizeDevice.ts';
export type { ResyncOrder, ResyncOrderInput } from '../build/blockwire/control/v1/ResyncOrder.ts';
export type { Scrub, ScrubInput } from '../build/blockwire/control/v1/Scrub.ts';
export type {
  UpdateMembership,
  UpdateMembershipInput,
} from '../build/blockwire/control/v1/UpdateMembership.ts';
