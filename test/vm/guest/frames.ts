/**
 * Frames between a machine's driver (host side) and its agent (inside): 4 bytes length of what follows,
 * 1 byte type, 4 bytes process id, payload. Both ends are this file, so there is no version negotiation.
 */

/** Host to agent: start, stdin, stdinEnd, kill. Agent to host: ready, output, exit. */
export const FrameType = {
  start: 1,
  stdin: 2,
  stdinEnd: 3,
  kill: 4,
  ready: 16,
  output: 17,
  exit: 18,
} as const;

export interface Frame {
  readonly type: number;
  readonly id: number;
  readonly payload: Buffer;
}

const HEADER_BYTES = 9;

/** Longest payload either side sends; a longer one means that the stream is out of step. */
export const PAYLOAD_BYTES_MAX = 4 * 1024 * 1024;

export function encodeFrame(type: number, id: number, payload: Uint8Array): Buffer {
  if (payload.length > PAYLOAD_BYTES_MAX)
    throw new RangeError(`A frame of ${payload.length} bytes is too long`);
  const frame = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
  frame.writeUInt32BE(HEADER_BYTES - 4 + payload.length, 0);
  frame.writeUInt8(type, 4);
  frame.writeUInt32BE(id, 5);
  frame.set(payload, HEADER_BYTES);
  return frame;
}

/** Cuts a byte stream into frames, whatever the chunks' boundaries. Throws RangeError when out of step. */
export class FrameDecoder {
  #chunks: Buffer[] = [];
  #sizeBytes = 0;

  push(chunk: Buffer): Frame[] {
    this.#chunks.push(chunk);
    this.#sizeBytes += chunk.length;
    const frames: Frame[] = [];
    for (;;) {
      if (this.#sizeBytes < HEADER_BYTES) return frames;
      // Joining only once a whole frame is there keeps large frames from being copied once per chunk.
      const first = this.#peek(HEADER_BYTES);
      const frameBytes = 4 + first.readUInt32BE(0);
      if (frameBytes < HEADER_BYTES || frameBytes > HEADER_BYTES + PAYLOAD_BYTES_MAX) {
        throw new RangeError(`A frame of ${frameBytes} bytes: the agent's channel is out of step`);
      }
      if (this.#sizeBytes < frameBytes) return frames;
      const all = this.#peek(frameBytes);
      frames.push({
        type: all.readUInt8(4),
        id: all.readUInt32BE(5),
        payload: all.subarray(HEADER_BYTES, frameBytes),
      });
      this.#chunks[0] = all.subarray(frameBytes);
      this.#sizeBytes -= frameBytes;
    }
  }

  /** The first chunk, joined with the following ones until it has `lengthBytes`. */
  #peek(lengthBytes: number): Buffer {
    const first = this.#chunks[0]!;
    if (first.length >= lengthBytes) return first;
    const joined = Buffer.concat(this.#chunks);
    this.#chunks = [joined];
    return joined;
  }
}
