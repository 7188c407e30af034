/** The driver's end of the agent's channel: turns frames into commands with promises. */
import type { Readable, Writable } from 'node:stream';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { encodeFrame, type Frame, FrameDecoder, FrameType } from './guest/frames.ts';
import type { CommandOptions, CommandResult, MachineProcess } from './machine.ts';

/** Output kept of a command; what is older is dropped, `onOutput` sees it all. */
const OUTPUT_BYTES_MAX = 16 * 1024 * 1024;
/** A killed command that is stuck in the kernel is not waited for longer than this. */
const KILL_GRACE_MS = 10_000;

/** The two directions; one socket, or a child's pipes. */
export interface Channel {
  readonly readable: Readable;
  readonly writable: Writable;
}

export class AgentClient {
  readonly #channel: Channel;
  readonly #defaultCwd: string;
  readonly #commands = new Map<number, Command>();
  readonly #decoder = new FrameDecoder();
  #nextId = 1;
  #gone: BlockwireError | null = null;
  /** Resolves with the kernel's release when the agent says that it is ready. */
  readonly ready: Promise<string>;
  readonly #ready = Promise.withResolvers<string>();

  /** `describeEnd` says why the machine may have gone, when its channel closes. */
  constructor(channel: Channel, defaultCwd: string, describeEnd: () => Promise<string>) {
    this.#channel = channel;
    this.#defaultCwd = defaultCwd;
    this.ready = this.#ready.promise;
    this.ready.catch(() => {});
    channel.readable.on('data', (chunk: Buffer) => {
      try {
        for (const frame of this.#decoder.push(chunk)) this.#handle(frame);
      } catch (error) {
        this.fail(new BlockwireError('BW_PROTOCOL', String(error), { cause: error }));
      }
    });
    const closed = async () => this.fail(new BlockwireError('BW_IO', await describeEnd()));
    channel.readable.on('error', closed);
    channel.readable.on('close', closed);
    channel.writable.on('error', closed);
  }

  start(command: string, options: CommandOptions = {}): MachineProcess {
    const id = this.#nextId++;
    const send = (type: number, payload: Uint8Array) => {
      if (!this.#gone) this.#channel.writable.write(encodeFrame(type, id, payload));
    };
    const started = new Command(send, options, () => this.#commands.delete(id));
    if (this.#gone) {
      started.fail(this.#gone);
      return started;
    }
    this.#commands.set(id, started);
    const request = { command, cwd: options.cwd ?? this.#defaultCwd, env: options.env ?? {} };
    send(FrameType.start, Buffer.from(JSON.stringify(request)));
    return started;
  }

  /** Rejects everything pending and to come. */
  fail(error: BlockwireError): void {
    if (this.#gone) return;
    this.#gone = error;
    this.#ready.reject(error);
    for (const command of [...this.#commands.values()]) command.fail(error);
    this.#channel.readable.destroy();
    this.#channel.writable.destroy();
  }

  #handle({ type, id, payload }: Frame): void {
    if (type === FrameType.ready) this.#ready.resolve(payload.toString());
    else if (type === FrameType.output) this.#commands.get(id)?.receive(payload);
    else if (type === FrameType.exit) this.#commands.get(id)?.exit(payload.readInt32BE(0));
    else throw new RangeError(`unknown frame type ${type}`);
  }
}

class Command implements MachineProcess {
  readonly done: Promise<CommandResult>;
  readonly #done = Promise.withResolvers<CommandResult>();
  readonly #send: (type: number, payload: Uint8Array) => void;
  readonly #onOutput: ((chunk: Buffer) => void) | undefined;
  readonly #onEnd: () => void;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #waiters = new Set<() => void>();
  #chunks: Buffer[] = [];
  #keptBytes = 0;
  #timedOut = false;
  #ended = false;
  #failure: BlockwireError | null = null;

  constructor(
    send: (type: number, payload: Uint8Array) => void,
    { timeoutMs, onOutput }: CommandOptions,
    onEnd: () => void,
  ) {
    this.#send = send;
    this.#onOutput = onOutput;
    this.#onEnd = onEnd;
    this.done = this.#done.promise;
    this.done.catch(() => {});
    if (timeoutMs !== undefined) this.#timers.push(setTimeout(() => this.#timeOut(), timeoutMs));
  }

  write(data: string | Uint8Array): void {
    this.#send(FrameType.stdin, Buffer.from(data));
  }

  end(): void {
    this.#send(FrameType.stdinEnd, Buffer.alloc(0));
  }

  kill(signal: NodeJS.Signals = 'SIGTERM'): void {
    this.#send(FrameType.kill, Buffer.from(signal));
  }

  waitFor(pattern: RegExp): Promise<RegExpExecArray> {
    return new Promise((resolve, reject) => {
      const look = () => {
        const match = pattern.exec(this.#output());
        if (match) resolve(match);
        else if (this.#ended) {
          const message = `The command ended before it printed ${pattern}: ${this.#output()}${this.#failure?.message ?? ''}`;
          reject(new BlockwireError('BW_IO', message, { cause: this.#failure }));
        } else return;
        this.#waiters.delete(look);
      };
      this.#waiters.add(look);
      look();
    });
  }

  receive(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#keptBytes += chunk.length;
    while (this.#keptBytes > OUTPUT_BYTES_MAX) this.#keptBytes -= this.#chunks.shift()!.length;
    this.#onOutput?.(chunk);
    for (const look of this.#waiters) look();
  }

  exit(exitCode: number): void {
    this.#end();
    this.#done.resolve({ exitCode, output: this.#output(), timedOut: this.#timedOut });
  }

  fail(error: BlockwireError): void {
    this.#failure = error;
    this.#end();
    this.#done.reject(error);
  }

  #output(): string {
    return Buffer.concat(this.#chunks).toString();
  }

  #timeOut(): void {
    this.#timedOut = true;
    this.kill('SIGKILL');
    // 137 is what a shell says of SIGKILL.
    this.#timers.push(setTimeout(() => this.exit(137), KILL_GRACE_MS));
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const timer of this.#timers) clearTimeout(timer);
    for (const look of this.#waiters) look();
    this.#onEnd();
  }
}
