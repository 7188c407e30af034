/** The NBD listening socket: one for all workers, made by the main thread. */
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { KernelError } from '@blockwire/native/errors.ts';
import { listenTcp } from '@blockwire/native/sockets.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';

const BACKLOG = 1024;

export interface Listener {
  readonly fd: number;
  readonly port: number;
}

/**
 * Binds and listens. Port 0 takes any free one. Throws BW_INVALID_ARGUMENT for a host that does not resolve, and
 * BW_CONFLICT when the port is taken.
 */
export async function listen(host: string, port: number): Promise<Listener> {
  const address = await resolve(host);
  try {
    return listenTcp({ address, port }, BACKLOG);
  } catch (error) {
    if (error instanceof KernelError && error.code === 'EADDRINUSE') {
      throw new BlockwireError('BW_CONFLICT', `${host}:${port} is in use; choose another with --nbd-port`);
    }
    throw error;
  }
}

async function resolve(host: string): Promise<string> {
  if (isIP(host) !== 0) return host;
  try {
    return (await lookup(host)).address;
  } catch (cause) {
    throw new BlockwireError('BW_INVALID_ARGUMENT', `--host ${host} does not resolve`, { cause });
  }
}
