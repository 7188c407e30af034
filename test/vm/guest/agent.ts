/**
 * Runs shell commands for the driver on the other end of a byte channel: several at once, each in a session
 * of its own so that it can be killed whole. It ends when the channel closes; inside the VM that powers off.
 *
 *   node agent.ts PORT   a virtio-serial port, as in the VM
 *   node agent.ts -      standard input and output, as on a host
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import { Socket } from 'node:net';
import * as os from 'node:os';
import * as path from 'node:path';
import { encodeFrame, type Frame, FrameDecoder, FrameType } from './frames.ts';

/** What the host asks for; written by agent-client.ts. */
interface StartRequest {
  command: string;
  cwd: string;
  env: Record<string, string>;
}

const QUEUE_BYTES_PAUSE = 1024 * 1024;
const QUEUE_BYTES_RESUME = 256 * 1024;
const WRITE_BYTES_MAX = 256 * 1024;
const FIFO_BATCH = 64;

/** Writes frames in order, one system call at a time; tells when readers should pause. */
class Sender {
  readonly #fd: number;
  readonly #onPressure: (high: boolean) => void;
  #pending: Buffer[] = [];
  /** What the system call under way has still to write. */
  #inFlight: Buffer | null = null;
  #queueBytes = 0;
  #high = false;

  constructor(fd: number, onPressure: (high: boolean) => void) {
    this.#fd = fd;
    this.#onPressure = onPressure;
  }

  get high(): boolean {
    return this.#high;
  }

  send(type: number, id: number, payload: Uint8Array): void {
    const frame = encodeFrame(type, id, payload);
    this.#pending.push(frame);
    this.#queueBytes += frame.length;
    if (!this.#high && this.#queueBytes > QUEUE_BYTES_PAUSE) {
      this.#high = true;
      this.#onPressure(true);
    }
    if (this.#inFlight === null) this.#writePending();
  }

  #writePending(): void {
    this.#inFlight = Buffer.concat(this.#pending);
    this.#pending = [];
    this.#write(this.#inFlight);
  }

  #write(buffer: Buffer): void {
    fs.write(this.#fd, buffer, 0, Math.min(buffer.length, WRITE_BYTES_MAX), null, (error, writtenBytes) => {
      if (error) process.exit(1);
      this.#queueBytes -= writtenBytes;
      if (this.#high && this.#queueBytes < QUEUE_BYTES_RESUME) {
        this.#high = false;
        this.#onPressure(false);
      }
      if (writtenBytes < buffer.length) {
        this.#inFlight = buffer.subarray(writtenBytes);
        this.#write(this.#inFlight);
      } else if (this.#pending.length > 0) this.#writePending();
      else this.#inFlight = null;
    });
  }
}

/**
 * Named pipes for the commands' output. Node's own "pipe" is a socket, on which opening /dev/stdout fails, and
 * two of them would lose the order between output and error output.
 */
class Fifos {
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'agent-'));
  #free: string[] = [];
  #made = 0;

  open(): { readFd: number; writeFd: number } {
    if (this.#free.length === 0) {
      for (let i = 0; i < FIFO_BATCH; i++) this.#free.push(path.join(this.#directory, `${this.#made++}`));
      execFileSync('mkfifo', this.#free);
    }
    const name = this.#free.pop()!;
    const readFd = fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    const writeFd = fs.openSync(name, fs.constants.O_WRONLY);
    fs.unlinkSync(name);
    return { readFd, writeFd };
  }

  remove(): void {
    fs.rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Sends everything that a command's pipe holds, as it comes; `drain` sends what is there right now. */
class OutputPump {
  readonly #fd: number;
  readonly #socket: Socket;
  readonly #deliver: (chunk: Buffer) => void;
  #ended = false;
  #finished = false;

  constructor(fd: number, paused: boolean, deliver: (chunk: Buffer) => void) {
    this.#fd = fd;
    this.#deliver = deliver;
    this.#socket = new Socket({ fd, readable: true, writable: false });
    this.#socket.on('end', () => {
      this.#ended = true;
    });
    this.#socket.on('error', () => {
      this.#ended = true;
    });
    this.#socket.on('data', (chunk: Buffer) => {
      if (!this.#finished) this.#deliver(chunk);
    });
    if (paused) this.#socket.pause();
  }

  pause(paused: boolean): void {
    if (this.#finished) return;
    if (paused) this.#socket.pause();
    else this.#socket.resume();
  }

  /**
   * The command's shell has ended: what it wrote is in the pipe and is delivered now. A process it left behind
   * may write on: that is read and dropped, for a closed pipe would kill it.
   */
  finish(): void {
    if (this.#finished) return;
    for (let chunk = this.#socket.read(); chunk !== null; chunk = this.#socket.read()) this.#deliver(chunk);
    const buffer = Buffer.allocUnsafe(65536);
    while (!this.#ended) {
      let lengthBytes = 0;
      try {
        lengthBytes = fs.readSync(this.#fd, buffer);
      } catch {
        break; // EAGAIN: empty, while someone still holds the other end.
      }
      if (lengthBytes === 0) break;
      this.#deliver(Buffer.from(buffer.subarray(0, lengthBytes)));
    }
    this.#finished = true;
    this.#socket.resume();
  }
}

class Agent {
  readonly #readFd: number;
  readonly #sender: Sender;
  readonly #fifos = new Fifos();
  readonly #decoder = new FrameDecoder();
  readonly #children = new Map<number, ChildProcess>();
  readonly #pumps = new Map<number, OutputPump>();

  constructor(readFd: number, writeFd: number) {
    this.#readFd = readFd;
    this.#sender = new Sender(writeFd, (high) => {
      for (const pump of this.#pumps.values()) pump.pause(high);
    });
  }

  serve(): void {
    this.#sender.send(FrameType.ready, 0, Buffer.from(os.release()));
    const buffer = Buffer.allocUnsafe(65536);
    const next = () => {
      fs.read(this.#readFd, buffer, 0, buffer.length, null, (error, lengthBytes) => {
        if (error || lengthBytes === 0) return this.#end();
        for (const frame of this.#decoder.push(Buffer.from(buffer.subarray(0, lengthBytes)))) {
          this.#handle(frame);
        }
        next();
      });
    };
    next();
  }

  #end(): void {
    for (const id of this.#children.keys()) this.#kill(id, 'SIGKILL');
    this.#fifos.remove();
    process.exit(0);
  }

  #handle({ type, id, payload }: Frame): void {
    if (type === FrameType.start) this.#start(id, JSON.parse(payload.toString()));
    else if (type === FrameType.stdin) this.#children.get(id)?.stdin?.write(payload);
    else if (type === FrameType.stdinEnd) this.#children.get(id)?.stdin?.end();
    else if (type === FrameType.kill) this.#kill(id, payload.toString());
  }

  #start(id: number, { command, cwd, env }: StartRequest): void {
    const { readFd, writeFd } = this.#fifos.open();
    const child = spawn('/bin/bash', ['-c', command], {
      cwd,
      env: { ...process.env, ...env },
      detached: true,
      stdio: ['pipe', writeFd, writeFd],
    });
    fs.closeSync(writeFd);
    const pump = new OutputPump(readFd, this.#sender.high, (chunk) =>
      this.#sender.send(FrameType.output, id, chunk),
    );
    this.#children.set(id, child);
    this.#pumps.set(id, pump);
    // A command that does not read its input closes it; that is its right.
    child.stdin?.on('error', () => {});
    const finish = (exitCode: number) => {
      if (!this.#children.delete(id)) return;
      pump.finish();
      this.#pumps.delete(id);
      const payload = Buffer.alloc(4);
      payload.writeInt32BE(exitCode);
      this.#sender.send(FrameType.exit, id, payload);
    };
    child.on('error', (error) => {
      this.#sender.send(FrameType.output, id, Buffer.from(`${error.message}\n`));
      finish(127);
    });
    child.on('exit', (code, signal) =>
      finish(code ?? 128 + (signal === null ? 0 : os.constants.signals[signal])),
    );
  }

  /** A signal to the command and everything it started in its process group. */
  #kill(id: number, signal: string): void {
    const pid = this.#children.get(id)?.pid;
    if (pid === undefined) return;
    try {
      process.kill(-pid, signal);
    } catch {
      // It ended meanwhile.
    }
  }
}

const port = process.argv[2];
if (port === undefined) throw new Error('usage: agent.ts PORT | -');
const portFd = port === '-' ? undefined : fs.openSync(port, 'r+');
new Agent(portFd ?? 0, portFd ?? 1).serve();
