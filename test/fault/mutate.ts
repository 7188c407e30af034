/** Mutations of conversations that know of frames and fields: lengths, types and offsets are what breaks servers. */
import { bytesOf, type Sample } from './corpus.ts';
import type { Random } from './random.ts';

const BYTES_MAX = 2 ** 20;
/** Values that sit on an edge of something, big-endian, cut or widened to the field. */
const EDGES = [
  0n,
  1n,
  2n,
  0x7fn,
  0xffn,
  0xfffn,
  0x1000n,
  0x1001n,
  0x3000n,
  0x3001n,
  0x7fffn,
  0xffffn,
  0xfffffn,
  0x100000n,
  0x100001n,
  0x2000000n,
  0x2000001n,
  0x7fffffffn,
  0x80000000n,
  0xfffff000n,
  0xffffffffn,
  0x100000000n,
  0x1fffffffffffffn,
  0x20000000000000n,
  0x7fffffffffffffffn,
  0x8000000000000000n,
  0xffffffffffffffffn,
];

type Frames = Buffer[][];

/** One to six mutations of a sample, as bytes to send. */
export function mutate(random: Random, corpus: readonly Sample[]): Buffer {
  let frames: Frames = random.pick(corpus).frames.map((fields) => [...fields]);
  for (let count = 1 + random.below(6); count > 0; count--) frames = mutateOnce(random, frames, corpus);
  let bytes = bytesOf(frames).subarray(0, BYTES_MAX);
  if (random.oneIn(4)) bytes = mutateBytes(random, bytes);
  return bytes;
}

function mutateOnce(random: Random, frames: Frames, corpus: readonly Sample[]): Frames {
  if (frames.length === 0) return [[random.bytes(random.below(64))]];
  const at = random.below(frames.length);
  const frame = frames[at]!;
  if (frame.length === 0) return frames.toSpliced(at, 1);
  switch (random.below(9)) {
    case 0:
      return frames.toSpliced(at, 1);
    case 1: {
      const times = random.oneIn(4) ? 1 + random.below(200) : 1 + random.below(4);
      return frames.toSpliced(at, 0, ...Array.from({ length: times }, () => [...frame]));
    }
    case 2: {
      const other = random.pick(corpus).frames;
      const from = random.below(other.length);
      const taken = other.slice(from, from + 1 + random.below(4)).map((fields) => [...fields]);
      return frames.toSpliced(at, random.below(2), ...taken);
    }
    case 3:
      return frames.with(at, frames[random.below(frames.length)]!);
    case 4:
      return frames.with(at, frame.toSpliced(random.below(frame.length), 1));
    case 5:
      return frames.with(at, frame.toSpliced(random.below(frame.length), 0, random.bytes(random.below(40))));
    default: {
      const field = random.below(frame.length);
      return frames.with(at, frame.with(field, mutateField(random, frame[field] ?? Buffer.alloc(0))));
    }
  }
}

function mutateField(random: Random, field: Buffer): Buffer {
  if (field.length > 8) return field.subarray(0, random.below(field.length + 1));
  if (random.oneIn(3)) return random.bytes(field.length);
  const edge = Buffer.alloc(8);
  edge.writeBigUInt64BE(random.pick(EDGES));
  return edge.subarray(8 - field.length);
}

function mutateBytes(random: Random, bytes: Buffer): Buffer {
  const changed = Buffer.from(bytes);
  for (let count = 1 + random.below(8); count > 0 && changed.length > 0; count--) {
    const at = random.below(Math.min(changed.length, random.oneIn(2) ? 64 : changed.length));
    changed[at] = random.oneIn(2) ? random.bits() : changed[at]! ^ (1 << random.below(8));
  }
  return changed.subarray(0, random.oneIn(2) ? random.below(changed.length + 1) : changed.length);
}
