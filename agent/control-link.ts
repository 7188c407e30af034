/** The agent's calls to the control plane and the commands that come back, over gRPC. */
import { hostname } from 'node:os';
import { agentsMethods, createAgentsClient, unary } from '@blockwire/proto/control/client.ts';
import { RpcError } from '@blockwire/proto/control/errors.ts';
import type {
  AgentCommand,
  AttachedDeviceInput,
  AttachVolume,
  Membership,
} from '@blockwire/proto/control/types.ts';
import { ControlSession } from '@blockwire/shared/control-session.ts';
import { BlockwireError, isErrorCode, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { readVersion } from '@blockwire/shared/version.ts';
import type { Attachments } from './attachments.ts';

const CALL_MS_MAX = 5_000;
/** A verdict waits until the survivors have persisted the new epoch. */
const VERDICT_MS_MAX = 40_000;

export interface ControlLinkOptions {
  readonly log: Logger;
  readonly agentId: string;
  /** host:port */
  readonly control: string;
  /** Modes that this host offers, best first. */
  readonly datapaths: readonly string[];
}

export class ControlLink {
  readonly #options: ControlLinkOptions;
  readonly #client: ReturnType<typeof createAgentsClient>;
  #session: ControlSession<AgentCommand> | null = null;

  constructor(options: ControlLinkOptions) {
    this.#options = options;
    this.#client = createAgentsClient(options.control);
  }

  get connected(): boolean {
    return this.#session?.connected ?? false;
  }

  /** Registers and serves commands from now on; resolves at the first registration. */
  start(attachments: Attachments): Promise<void> {
    const { log, agentId, datapaths } = this.#options;
    const methods = agentsMethods();
    this.#session = new ControlSession<AgentCommand>({
      log,
      register: async (signal) => {
        const request = {
          agentId,
          host: hostname(),
          version: readVersion(),
          datapaths: [...datapaths],
          devices: attachments.reports,
        };
        const answer = await unary(this.#client, methods.Register, request, {
          timeoutMs: CALL_MS_MAX,
          signal,
        });
        return answer.heartbeatIntervalMs;
      },
      heartbeat: async (signal) => {
        const request = { agentId, devices: attachments.statuses };
        await unary(this.#client, methods.Heartbeat, request, { timeoutMs: CALL_MS_MAX, signal });
      },
      watch: () => this.#client.Watch({ agentId }),
      onCommand: (command) => this.#execute(command, attachments),
    });
    return this.#session.start();
  }

  /** See Agents.ReportReplicaLost. Throws BlockwireError with the control plane's code. */
  async reportLost(report: { membership: Membership; nodeId: string; reason: string }): Promise<Membership> {
    const { volumeId, generation, epoch } = report.membership;
    const request = {
      agentId: this.#options.agentId,
      volumeId,
      generation,
      epoch,
      nodeId: report.nodeId,
      reason: report.reason,
    };
    try {
      return await unary(this.#client, agentsMethods().ReportReplicaLost, request, {
        timeoutMs: VERDICT_MS_MAX,
      });
    } catch (error) {
      throw refusal(error);
    }
  }

  /** See Agents.ResumeAttachment. Throws BlockwireError with the control plane's code. */
  async resume(attachmentId: string): Promise<AttachVolume> {
    const request = { agentId: this.#options.agentId, attachmentId };
    try {
      return await unary(this.#client, agentsMethods().ResumeAttachment, request, {
        timeoutMs: VERDICT_MS_MAX,
      });
    } catch (error) {
      throw refusal(error);
    }
  }

  /** Takes no commands any more; those under way are awaited. Reports still go out. */
  async leave(): Promise<void> {
    await this.#session?.stop();
  }

  async stop(): Promise<void> {
    await this.leave();
    this.#client.close();
  }

  async #execute(command: AgentCommand, attachments: Attachments): Promise<void> {
    let device: AttachedDeviceInput | null = null;
    let error: BlockwireError | null = null;
    try {
      if (command.attach != null) device = await attachments.attach(command.attach);
      else if (command.detach != null) await attachments.detach(command.detach);
      else if (command.resize != null) await attachments.resize(command.resize);
      else if (command.membership != null) await attachments.updateMembership(command.membership);
      else if (command.holdWrites != null) await attachments.holdWrites(command.holdWrites);
      else if (command.releaseWrites != null) await attachments.releaseWrites(command.releaseWrites);
      else throw new BlockwireError('BW_PROTOCOL', 'a command that this agent does not know');
    } catch (thrown) {
      error = toBlockwireError(thrown);
      this.#options.log.warn(
        { command: command.commandId, code: error.code, err: thrown },
        'a command failed',
      );
    }
    const result = {
      commandId: command.commandId,
      errorCode: error?.code ?? '',
      errorMessage: error?.message ?? '',
    };
    const request = { agentId: this.#options.agentId, result, device };
    try {
      await unary(this.#client, agentsMethods().Complete, request, { timeoutMs: CALL_MS_MAX });
    } catch (thrown) {
      // The control plane asks again after its deadline; commands are safe to repeat.
      this.#options.log.warn(
        { command: command.commandId, err: thrown },
        'the outcome of a command was not delivered',
      );
    }
  }
}

function refusal(error: unknown): BlockwireError {
  if (error instanceof RpcError && error.code !== null && isErrorCode(error.code)) {
    return new BlockwireError(error.code, error.message, { cause: error });
  }
  return toBlockwireError(error, 'BW_PEER_UNREACHABLE');
}
