/** A volume as the model of each of its blocks: requests are cut into their parts of blocks. */
import { BLOCK_BYTES } from './block-content.ts';
import { BlockModel, type Effect, type ReadMark } from './block-model.ts';

export type Change =
  | { readonly kind: 'write'; readonly offset: number; readonly data: Buffer }
  | { readonly kind: 'zero' | 'trim'; readonly offset: number; readonly lengthBytes: number };

/** A request that was sent; say `answered` when it was. */
export interface SentChange {
  answered(): void;
}

/** A read that was sent. */
export interface SentRead {
  /** What came, or null when no answer came. Returns what is wrong with it. */
  ended(content: Buffer | null): string[];
}

export class VolumeModel {
  readonly name: string;
  readonly sizeBytes: number;
  readonly #blocks: BlockModel[];

  constructor(name: string, sizeBytes: number) {
    this.name = name;
    this.sizeBytes = sizeBytes;
    const count = Math.ceil(sizeBytes / BLOCK_BYTES);
    this.#blocks = Array.from(
      { length: count },
      (_, block) => new BlockModel(Math.min(BLOCK_BYTES, sizeBytes - block * BLOCK_BYTES)),
    );
  }

  /** The most open requests, and the most states, of any block in a range. */
  openIn(offset: number, lengthBytes: number): number {
    let most = 0;
    this.#each(offset, lengthBytes, (block) => {
      most = Math.max(most, block.openCount, block.stateCount >> 4);
    });
    return most;
  }

  sent(connection: number, change: Change): SentChange {
    const lengthBytes = change.kind === 'write' ? change.data.length : change.lengthBytes;
    const marks: [BlockModel, number][] = [];
    this.#each(change.offset, lengthBytes, (block, at, length, done) => {
      const effect: Effect =
        change.kind === 'write'
          ? { kind: 'write', at, data: change.data.subarray(done, done + length) }
          : { kind: change.kind, at, lengthBytes: length };
      marks.push([block, block.sent(connection, effect)]);
    });
    return {
      answered: () => {
        for (const [block, bit] of marks) block.answered(bit);
      },
    };
  }

  /** @param offset a multiple of 4096, as the length is, but at the volume's end */
  read(offset: number, lengthBytes: number): SentRead {
    const marks: [BlockModel, ReadMark, number][] = [];
    this.#each(offset, lengthBytes, (block, _at, _length, done) => {
      marks.push([block, block.beginRead(), done]);
    });
    return {
      ended: (content) => {
        const wrong: string[] = [];
        for (const [block, mark, at] of marks) {
          const part = content === null ? null : content.subarray(at, at + block.lengthBytes);
          const problem = block.endRead(mark, part);
          if (problem !== null) wrong.push(this.#say(offset + at, problem));
        }
        return wrong;
      },
    };
  }

  /** Content of a range (whole blocks) after the node was killed and started again. Returns what is wrong with it. */
  settled(offset: number, content: Buffer): string[] {
    const wrong: string[] = [];
    this.#each(offset, content.length, (block, _at, length, done) => {
      const problem = block.settled(content.subarray(done, done + length));
      if (problem !== null) wrong.push(this.#say(offset + done, problem));
    });
    return wrong;
  }

  #say(offset: number, problem: string): string {
    return `${this.name} block ${offset / BLOCK_BYTES} ${problem}`;
  }

  #each(
    offset: number,
    lengthBytes: number,
    visit: (block: BlockModel, at: number, lengthBytes: number, done: number) => void,
  ): void {
    for (let done = 0; done < lengthBytes; ) {
      const at = (offset + done) % BLOCK_BYTES;
      const length = Math.min(BLOCK_BYTES - at, lengthBytes - done);
      visit(this.#blocks[Math.floor((offset + done) / BLOCK_BYTES)]!, at, length, done);
      done += length;
    }
  }
}
