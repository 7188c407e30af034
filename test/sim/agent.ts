/** An agent's host: its devices end with it. */
import type { AgentAction, DeviceReport } from '@blockwire/control/domain/context.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { SimDevice } from './device.ts';
import { VOLUME_ID } from './members.ts';
import { Process } from './network.ts';
import type { Cluster } from './node.ts';

const HEARTBEAT_MS = 200;
const CONNECT_MS_MAX = 1200;

export interface AgentHost {
  /** A device may be used from now on. */
  onDevice(device: SimDevice): void;
}

export class SimAgent {
  readonly id: string;
  readonly #cluster: Cluster;
  readonly #host: AgentHost;
  #process: Process | null = null;
  #devices = new Map<string, SimDevice>();

  constructor(cluster: Cluster, id: string, host: AgentHost) {
    this.#cluster = cluster;
    this.id = id;
    this.#host = host;
  }

  get process(): Process | null {
    return this.#process;
  }

  start(): void {
    if (this.#process !== null) return;
    this.#devices = new Map();
    this.#process = new Process(this.#cluster.world, this.id);
    this.#cluster.control.members.join({
      ...{ kind: 'agent', id: this.id, process: this.#process, heartbeatMs: HEARTBEAT_MS },
      devices: () => [...this.#devices.keys()].map((id) => this.#report(id)),
    });
  }

  /** The host fails: its devices are gone. */
  kill(): void {
    this.#process?.kill();
    this.#process = null;
  }

  command(process: Process, commandId: string, action: AgentAction): void {
    if (process !== this.#process) return;
    const complete = (outcome: BlockwireError | { readonly result: DeviceReport | null }): void =>
      this.#cluster.control.members.completeAgent(process, this.id, commandId, outcome);
    switch (action.kind) {
      case 'attach': {
        const device = new SimDevice({ cluster: this.#cluster, process, agentId: this.id, action });
        this.#devices.set(action.attachmentId, device);
        const until = this.#cluster.world.now + CONNECT_MS_MAX;
        const wait = (): void => {
          if (device.isEnded) return;
          if (device.isServing) {
            this.#host.onDevice(device);
            complete({ result: this.#report(action.attachmentId) });
          } else if (this.#cluster.world.now > until) {
            device.end();
            this.#devices.delete(action.attachmentId);
            complete(new BlockwireError('BW_NO_IN_SYNC_REPLICA', 'no replica answers'));
          } else {
            process.after(5, wait);
          }
        };
        wait();
        break;
      }
      case 'detach': {
        const device = this.#devices.get(action.attachmentId);
        if (device !== undefined && !action.force && device.activeCount > 0) {
          complete(new BlockwireError('BW_DEVICE_BUSY', 'the device is in use'));
          return;
        }
        device?.end();
        this.#devices.delete(action.attachmentId);
        complete({ result: null });
        break;
      }
      case 'membership': {
        const device = this.#devices.get(action.attachmentId);
        if (device === undefined) {
          complete(new BlockwireError('BW_ATTACHMENT_NOT_FOUND', 'no such device'));
          return;
        }
        device.update(action.membership, () => complete({ result: null }));
        break;
      }
      default:
        complete({ result: null });
    }
  }

  #report(attachmentId: string): DeviceReport {
    return { attachmentId, volumeId: VOLUME_ID, device: '/dev/ublkb0', datapath: 'copy' };
  }
}
