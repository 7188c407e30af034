/** NBD servers to measure against each other: how each is started, found ready, filled, and ended. */
import { mkdir, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { type Daemon, runToEnd, startDaemon } from './processes.ts';

const READY_MS_MAX = 30_000;
const FILL_MS_MAX = 300_000;
export const EXPORT = 'bench';
const ROOT = join(import.meta.dirname, '../..');

export const SERVER_KINDS = [
  'node',
  'nbdkit-memory',
  'nbdkit-file',
  'nbd-server',
  'qemu-nbd',
  'qemu-storage-daemon',
] as const;

export type ServerKind = (typeof SERVER_KINDS)[number];

export interface ServerOptions {
  readonly kind: ServerKind;
  /** Address to listen at. */
  readonly host: string;
  /** Null for the host's own network. */
  readonly netns: string | null;
  readonly sizeBytes: number;
  /** A directory of this server's own, on the file system that is measured. */
  readonly directory: string;
  /** O_DIRECT, for the servers that can. Blockwire's node always does. */
  readonly direct: boolean;
}

export interface NbdServer {
  readonly kind: ServerKind;
  readonly pid: number;
  readonly host: string;
  readonly port: number;
  readonly exportName: string;
  readonly uri: string;
  /** Throws BW_IO when it is not running any more. */
  check(): void;
  stop(): Promise<void>;
}

/** Starts a server whose export is full of data, so that no read meets a hole. Throws BW_IO, BW_TIMEOUT. */
export async function startServer(options: ServerOptions): Promise<NbdServer> {
  await mkdir(options.directory, { recursive: true });
  const port = await freePort();
  const daemon = startDaemon(await serverCommand(options, port), { netns: options.netns });
  const uri = `nbd://${options.host}:${port}/${EXPORT}`;
  try {
    await answers(daemon, uri, options);
    await fill(uri, options.netns);
  } catch (error) {
    await daemon.kill();
    throw error;
  }
  return {
    kind: options.kind,
    pid: daemon.pid,
    host: options.host,
    port,
    exportName: EXPORT,
    uri,
    check() {
      const ended = daemon.ended();
      if (ended !== null) throw new BlockwireError('BW_IO', `${options.kind}: ${ended}\n${daemon.output()}`);
    },
    stop: () => daemon.kill(),
  };
}

/** What to start; some servers want a file first, which is made. */
export async function serverCommand(options: ServerOptions, port: number): Promise<string[]> {
  const { kind, host, sizeBytes, directory, direct } = options;
  const file = join(directory, 'data');
  switch (kind) {
    case 'node':
      return [
        process.execPath,
        join(ROOT, 'services/node/main.ts'),
        ...['--id', 'bench', '--data-dir', directory, '--host', host, '--nbd-port', String(port)],
        ...['--metrics-port', '0', '--export', `${EXPORT}=${sizeBytes}`],
      ];
    case 'nbdkit-memory':
      return ['nbdkit', '--foreground', '-i', host, '-p', String(port), 'memory', `size=${sizeBytes}`];
    case 'nbdkit-file':
      await allocate(file, sizeBytes);
      return ['nbdkit', '--foreground', '-i', host, '-p', String(port), 'file', file];
    case 'qemu-nbd':
      await allocate(file, sizeBytes);
      return [
        ...['qemu-nbd', '--persistent', '--shared=16', '--format=raw', '-b', host, '-p', String(port)],
        ...[
          '-x',
          EXPORT,
          `--cache=${direct ? 'none' : 'writeback'}`,
          `--aio=${direct ? 'native' : 'threads'}`,
        ],
        file,
      ];
    case 'qemu-storage-daemon':
      await allocate(file, sizeBytes);
      return [
        'qemu-storage-daemon',
        '--blockdev',
        `driver=file,node-name=f,filename=${file},cache.direct=${direct ? 'on' : 'off'},aio=${direct ? 'native' : 'threads'}`,
        ...['--nbd-server', `addr.type=inet,addr.host=${host},addr.port=${port},max-connections=16`],
        ...['--export', `type=nbd,id=e,node-name=f,name=${EXPORT},writable=on`],
      ];
    case 'nbd-server': {
      await allocate(file, sizeBytes);
      const config = join(directory, 'nbd-server.conf');
      await writeFile(
        config,
        `[generic]\nlistenaddr = ${host}\nport = ${port}\n[${EXPORT}]\nexportname = ${file}\n`,
      );
      // In the foreground it serves one client and ends, so it runs as the daemon that it wants to be, inside a process
      // namespace that ends with its parent.
      return [
        ...['unshare', '--fork', '--pid', '--kill-child=KILL', 'sh', '-c'],
        'nbd-server -C "$1" -p "$2" && exec sleep infinity',
        ...['nbd-server', config, join(directory, 'nbd-server.pid')],
      ];
    }
  }
}

function allocate(file: string, sizeBytes: number): Promise<string> {
  return runToEnd(['fallocate', '-l', String(sizeBytes), file]);
}

/** A port that nobody has now; the namespaces of a test machine start empty, so it is free there too. */
function freePort(): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const probe = createServer();
  probe.once('error', reject);
  probe.listen(0, '127.0.0.1', () => {
    const address = probe.address();
    probe.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
  });
  return promise;
}

async function answers(daemon: Daemon, uri: string, options: ServerOptions): Promise<void> {
  const deadlineMs = performance.now() + READY_MS_MAX;
  for (;;) {
    const ended = daemon.ended();
    if (ended !== null) throw new BlockwireError('BW_IO', `${options.kind}: ${ended}\n${daemon.output()}`);
    try {
      const size = await runToEnd(['nbdinfo', '--size', uri], { netns: options.netns, timeoutMs: 5000 });
      if (Number(size) < options.sizeBytes)
        throw new BlockwireError('BW_IO', `${options.kind}: its export has ${size.trim()} bytes`);
      return;
    } catch (error) {
      if (performance.now() > deadlineMs) {
        throw new BlockwireError('BW_TIMEOUT', `${options.kind} does not answer: ${daemon.output()}`, {
          cause: error,
        });
      }
      await sleep(100);
    }
  }
}

/** Fills an export, so that no read meets a hole. */
export function fillCommand(uri: string): string[] {
  const args = ['--ioengine=nbd', `--uri=${uri}`, '--rw=write', '--bs=1M', '--iodepth=4', '--thread'];
  return ['fio', '--name=fill', ...args];
}

async function fill(uri: string, netns: string | null): Promise<void> {
  await runToEnd(fillCommand(uri), { netns, timeoutMs: FILL_MS_MAX });
}
