/** Which TCP ports the processes of a local cluster listen on. */
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { CommandError } from '../errors.ts';

/** `host:port`, an IPv6 address in brackets. */
export function hostPort(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Where a process on this machine reaches a server that listens on `bindHost`. */
export function localHost(bindHost: string): string {
  if (bindHost === '0.0.0.0') return '127.0.0.1';
  return bindHost === '::' ? '::1' : bindHost;
}

export interface PortWish {
  /** For the message when it is taken: `--rest-port`. */
  readonly purpose: string;
  /** Exactly this port (0: any free one), or null when one of `preferred` or any free one will do. */
  readonly wanted: number | null;
  readonly preferred: readonly number[];
}

/** Hands out each port once. */
export class PortChooser {
  readonly #host: string;
  readonly #given = new Set<number>();

  constructor(host: string) {
    this.#host = host;
  }

  /** @throws CommandError BW_CONFLICT when the wanted port is taken, BW_INVALID_ARGUMENT for a foreign address. */
  async choose({ purpose, wanted, preferred }: PortWish): Promise<number> {
    if (wanted !== null && wanted !== 0) {
      if (!(await this.#take(wanted)))
        throw new CommandError(
          'BW_CONFLICT',
          `port ${wanted} is taken on ${this.#host}; choose another (${purpose})`,
        );
      return wanted;
    }
    if (wanted === null) for (const port of preferred) if (await this.#take(port)) return port;
    for (;;) {
      const port = await probe(this.#host, 0);
      if (port !== null && !this.#given.has(port)) {
        this.#given.add(port);
        return port;
      }
    }
  }

  async #take(port: number): Promise<boolean> {
    if (this.#given.has(port) || (await probe(this.#host, port)) === null) return false;
    this.#given.add(port);
    return true;
  }
}

/** The port when it can be listened on (0: which one the system gave), else null. */
async function probe(host: string, port: number): Promise<number | null> {
  const server = createServer();
  try {
    server.listen({ host, port, exclusive: true });
    await once(server, 'listening');
    const { port: bound } = server.address() as AddressInfo;
    server.close();
    await once(server, 'close');
    return bound;
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'EADDRINUSE' || code === 'EACCES') return null;
    throw new CommandError(
      'BW_INVALID_ARGUMENT',
      `cannot listen on ${host}: ${String(code ?? error)} (--host)`,
    );
  }
}

const LOCK_NAME = '\0blockwire-up-ports';
const LOCK_RETRY_MS = 50;

/**
 * Runs `body` while no other `up` on this host is between choosing ports and listening on them; else two clusters
 * that start at once would choose the same ones. An abstract socket cannot be left behind by a killed process.
 * Gives up waiting after `timeoutMs` and runs anyway: the worst is a failed start.
 */
export async function withPortLock<Result>(
  { timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal },
  body: () => Promise<Result>,
): Promise<Result> {
  const deadline = performance.now() + timeoutMs;
  const server = createServer();
  for (;;) {
    try {
      server.listen(LOCK_NAME);
      await once(server, 'listening');
      break;
    } catch {
      if (signal.aborted || performance.now() > deadline) break;
      await sleep(LOCK_RETRY_MS);
    }
  }
  try {
    return await body();
  } finally {
    server.close();
  }
}
