/**
 * Blocks that say what they are: number, sequence number and checksum in each, the rest derived from them. Any mixture of
 * two such blocks, and any block in another's place, shows.
 *
 *   magic 4 | block number 4 | sequence 4 | filling, derived | CRC-32 of all before it 4
 */
import { crc32 } from 'node:zlib';

export const BLOCK_BYTES = 4096;
const MAGIC = 0x424c4b21;
const CRC_AT = BLOCK_BYTES - 4;

/** A whole block. */
export function blockContent(block: number, sequence: number): Buffer {
  const words = new Uint32Array(BLOCK_BYTES / 4);
  let state = (Math.imul(block + 1, 0x9e3779b1) ^ Math.imul(sequence + 1, 0x85ebca77)) | 1;
  for (let i = 3; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  const content = Buffer.from(words.buffer);
  content.writeUInt32BE(MAGIC, 0);
  content.writeUInt32BE(block, 4);
  content.writeUInt32BE(sequence, 8);
  content.writeUInt32BE(crc32(content.subarray(0, CRC_AT)), CRC_AT);
  return content;
}

/** Bytes `offset` to `offset + lengthBytes` of a volume in which every block has this sequence number. */
export function rangeContent(offset: number, lengthBytes: number, sequence: number): Buffer {
  const first = Math.floor(offset / BLOCK_BYTES);
  const end = Math.ceil((offset + lengthBytes) / BLOCK_BYTES);
  const blocks = Array.from({ length: end - first }, (_, i) => blockContent(first + i, sequence));
  const at = offset - first * BLOCK_BYTES;
  return Buffer.concat(blocks).subarray(at, at + lengthBytes);
}

/** What a block seems to be, for the report of a violation. */
export function describeContent(content: Buffer): string {
  if (content.every((byte) => byte === 0)) return 'zeroes';
  if (content.readUInt32BE(0) !== MAGIC) return `no block header (crc ${crc32(content).toString(16)})`;
  const name = `block ${content.readUInt32BE(4)} sequence ${content.readUInt32BE(8)}`;
  const whole =
    content.length === BLOCK_BYTES && crc32(content.subarray(0, CRC_AT)) === content.readUInt32BE(CRC_AT);
  return whole ? name : `${name}, mixed with something else`;
}
