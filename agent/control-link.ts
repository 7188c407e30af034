/** The agent's calls to the control plane and the commands that come back, over gRPC. */
import { hostname } from 'node:os';
import { agentsMethods, createAgentsClient, unary } from '@blockwire/proto/control/client.ts';
import { RpcError } from '@blockwire/proto/control/errors.ts';
import type { AgentCommand, AttachedDeviceInput, Membership } from '@blockwire/proto/control/types.ts';
import { ControlSession } from '@blockwire/shared/control-session.ts';
import { BlockwireError, isErrorCode, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { readVersion } from '@blockwire/shared/version.ts';
import { type Attachments, describeDevice } from './attachments.ts';

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
          devices: attachments.devices.map(describeDevice),
        };
        const answer = await unary(this.#client, methods.Register, request, {
          timeoutMs: CALL_MS_MAX,
          signal,
        });
        return answer.heartbeatIntervalMs;
      },
      heartbeat: async (signal) => {
        await unary(this.#client, methods.Heartbeat, { agentId }, { timeoutMs: CALL_MS_MAX, signal });
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
      if (error instanceof RpcError && error.code !== null && isErrorCode(error.code)) {
        throw new BlockwireError(error.code, error.message, { cause: error });
      }
      throw toBlockwireError(error, 'BW_PEER_UNREACHABLE');
    }
  }

  async stop(): Promise<void> {
    await this.#session?.stop();
    this.#client.close();
  }

  async #execute(command: AgentCommand, attachments: Attachments): Promise<void> {
    let device: AttachedDeviceInput | null = null;
    let error: BlockwireError | null = null;
    try {
      if (command.attach != null) device = await attachments.attach(command.attach);
      else if (command.detach != null) await attachments.detach(command.detach);
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
