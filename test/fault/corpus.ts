/**
 * The corpus: valid conversations as text. A line is a frame; its words are the frame's fields: hex digits, "text", or
 * `hex*count` for a repeated byte. What follows # is a comment.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const DIRECTORY = join(import.meta.dirname, 'corpus');

export interface Sample {
  readonly name: string;
  /** Fields of frames. */
  readonly frames: readonly (readonly Buffer[])[];
}

export function loadCorpus(): Sample[] {
  return readdirSync(DIRECTORY)
    .sort()
    .map((file) => ({
      name: file.replace(/\.txt$/, ''),
      frames: parseFrames(readFileSync(join(DIRECTORY, file), 'utf8')),
    }));
}

/** Throws on a word that is none of the three. */
export function parseFrames(text: string): Buffer[][] {
  return text
    .split('\n')
    .map((line) => [...line.replace(/#.*/, '').matchAll(/"[^"]*"|\S+/g)].map(([word]) => parseField(word)))
    .filter((fields) => fields.length > 0);
}

function parseField(word: string): Buffer {
  if (word.startsWith('"')) return Buffer.from(word.slice(1, -1), 'latin1');
  const repeated = /^([0-9a-f]{2})\*(\d+)$/.exec(word);
  if (repeated !== null) return Buffer.alloc(Number(repeated[2]), Number.parseInt(repeated[1]!, 16));
  if (!/^([0-9a-f]{2})+$/.test(word)) throw new Error(`corpus: ${word}`);
  return Buffer.from(word, 'hex');
}

export function bytesOf(frames: readonly (readonly Buffer[])[]): Buffer {
  return Buffer.concat(frames.flat());
}
