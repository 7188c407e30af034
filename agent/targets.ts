/** Where the replicas of a membership are: names resolved, and which of them are on this host. */
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { networkInterfaces } from 'node:os';
import { parseHostPort } from '@blockwire/native/sockets.ts';
import type { ReplicaMember } from '@blockwire/proto/control/types.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { ReplicaTarget } from './datapath/messages.ts';

/** A name that the control plane handed out: one of our nodes is behind it. */
const CAPABILITY = /[?&]cap=/;
const LOOPBACK = /^(127\.|::1$)/;

export class Targets {
  /** By host name: the address it had. A name is asked for once: a verdict must not wait for a name server. */
  readonly #addresses = new Map<string, string>();

  /** Throws BW_INVALID_ARGUMENT for what is not host:port, BW_PEER_UNREACHABLE for a name that nobody knows. */
  async resolve({ nodeId, nbdAddress, exportName }: ReplicaMember): Promise<ReplicaTarget> {
    const parsed = parseHostPort(nbdAddress);
    if (parsed === null) {
      throw new BlockwireError('BW_INVALID_ARGUMENT', `'${nbdAddress}' is not host:port`);
    }
    const address = await this.#addressOf(parsed.host);
    return { nodeId, address, port: parsed.port, exportName, isNode: CAPABILITY.test(exportName) };
  }

  async #addressOf(host: string): Promise<string> {
    if (isIP(host) !== 0) return host;
    const known = this.#addresses.get(host);
    if (known !== undefined) return known;
    try {
      const { address } = await lookup(host);
      this.#addresses.set(host, address);
      return address;
    } catch (error) {
      throw new BlockwireError('BW_PEER_UNREACHABLE', `'${host}' has no address`, { cause: error });
    }
  }
}

/** Whether an address is one of this host's own. */
export function isLocal(address: string): boolean {
  if (LOOPBACK.test(address)) return true;
  return Object.values(networkInterfaces()).some((interfaces) =>
    interfaces?.some((own) => own.address === address),
  );
}
