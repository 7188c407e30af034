/**
 * How one process of an agent makes way for the next: a lock (one process an agent) and a unix socket, both in the run
 * directory.
 *
 *   new process ── {"op":"handover"} ──▶ old process: holds I/O back, completes what is in flight, closes its devices
 *   new process ◀─ {"devices":[…]} ───── old process: ends, and with it its lock
 */
import { once } from 'node:events';
import * as fs from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { native } from '@blockwire/native/native.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { Type } from 'typebox';
import { Value } from 'typebox/value';

const LOCK_POLL_MS = 10;
const REQUEST_BYTES_MAX = 4096;

const Request = Type.Object({ op: Type.Literal('handover') });

const Answer = Type.Union([
  Type.Object({
    devices: Type.Array(Type.Object({ attachmentId: Type.String(), heldAtMs: Type.Number() })),
  }),
  Type.Object({ code: Type.String(), message: Type.String() }),
]);

export interface RunFiles {
  readonly lock: string;
  readonly socket: string;
}

export function runFiles(runDir: string, agentId: string): RunFiles {
  return { lock: join(runDir, `agent-${agentId}.lock`), socket: join(runDir, `agent-${agentId}.sock`) };
}

/**
 * Takes the lock, which the kernel gives back at the end of the process, however it ends. Throws BW_CONFLICT when another
 * process has it for all that time, BW_IO when the directory cannot be written.
 */
export async function lockAgent(files: RunFiles, agentId: string, timeoutMs: number): Promise<void> {
  let fd: number;
  try {
    fs.mkdirSync(join(files.lock, '..'), { recursive: true, mode: 0o755 });
    fd = fs.openSync(files.lock, 'w', 0o600);
  } catch (error) {
    throw toBlockwireError(error, 'BW_IO');
  }
  const deadlineMs = performance.now() + timeoutMs;
  while (!native.flock(fd)) {
    if (performance.now() > deadlineMs) {
      throw new BlockwireError(
        'BW_CONFLICT',
        `agent ${agentId} runs already; to replace it without a pause for its users: blockwire agent handover`,
      );
    }
    await sleep(LOCK_POLL_MS);
  }
}

/** Asks the process that runs to make way. Null when there is none. Throws its refusal, or BW_TIMEOUT. */
export async function askForHandover(
  files: RunFiles,
  timeoutMs: number,
): Promise<ReadonlyMap<string, number> | null> {
  const socket = connect(files.socket);
  try {
    await once(socket, 'connect');
  } catch {
    return null;
  }
  socket.setTimeout(timeoutMs, () =>
    socket.destroy(new BlockwireError('BW_TIMEOUT', 'the running agent did not make way')),
  );
  // Only this side is ended: the answer is yet to come.
  socket.end(`${JSON.stringify({ op: 'handover' })}\n`);
  let answer: unknown;
  try {
    answer = JSON.parse(await text(socket));
  } catch (error) {
    throw toBlockwireError(error, 'BW_PROTOCOL');
  }
  if (!Value.Check(Answer, answer))
    throw new BlockwireError('BW_PROTOCOL', 'the running agent gave an answer that is not known');
  if ('code' in answer)
    throw new BlockwireError('BW_CONFLICT', `the running agent refused: ${answer.message}`);
  return new Map(answer.devices.map(({ attachmentId, heldAtMs }) => [attachmentId, heldAtMs]));
}

/**
 * Listens for the next process. The lock must be held: a socket that is there was left by a process that is gone.
 * @param release gives everything up; @param end is called once the answer is on its way
 */
export async function serveHandover(
  files: RunFiles,
  steps: {
    readonly log: Logger;
    readonly release: () => Promise<{ attachmentId: string; heldAtMs: number }[]>;
    readonly end: () => void;
  },
): Promise<Server> {
  const { log, release, end } = steps;
  fs.rmSync(files.socket, { force: true });
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    let request = '';
    socket.on('error', (error) => log.warn({ err: error }, 'a handover was broken off'));
    socket.on('data', (chunk) => {
      request += String(chunk);
      if (request.length > REQUEST_BYTES_MAX) socket.destroy();
    });
    socket.on('end', () => {
      let asked: unknown = null;
      try {
        asked = JSON.parse(request);
      } catch {
        // Refused below.
      }
      if (!Value.Check(Request, asked)) {
        socket.end(
          JSON.stringify({ code: 'BW_INVALID_ARGUMENT', message: 'not a request of this protocol' }),
        );
        return;
      }
      log.info('handing over to another process');
      release().then(
        (devices) => socket.end(JSON.stringify({ devices }), end),
        (error: unknown) => {
          const { code, message } = toBlockwireError(error);
          socket.end(JSON.stringify({ code, message }));
        },
      );
    });
  });
  server.listen(files.socket);
  await once(server, 'listening');
  fs.chmodSync(files.socket, 0o600);
  return server;
}
