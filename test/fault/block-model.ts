/**
 * What a block of a volume may hold, given the requests that were sent and the answers that came. A block is in one of
 * several states at a time: each open request may or may not have taken effect yet, in any order that the promises allow:
 *
 *   - a request takes effect at one moment between its sending and its answer, per block as a whole;
 *   - requests of one connection take effect in the order in which they were sent;
 *   - an answered request has taken effect, and a killed process changes nothing of that: the kernel lives on;
 *   - a request that was open when the process was killed has taken effect or not, and never will afterwards.
 *
 * The states are kept closed under "one more open request takes effect", so that checking is looking up.
 */
import { BLOCK_BYTES, describeContent } from './block-content.ts';

/** Bits of a state's mask: open requests of one block. */
const OPEN_MAX = 30;
/** Events of a block that are told with a violation. */
const HISTORY_MAX = 16;

export type Effect =
  | { readonly kind: 'write'; readonly at: number; readonly data: Buffer }
  | { readonly kind: 'zero'; readonly at: number; readonly lengthBytes: number }
  /** A whole block reads as zeroes afterwards; a part of one may stay as it was. */
  | { readonly kind: 'trim'; readonly at: number; readonly lengthBytes: number };

interface Open {
  readonly connection: number;
  readonly bit: number;
  readonly effect: Effect;
  /** Bits of the requests that take effect before it. */
  readonly after: number;
}

interface State {
  readonly content: Buffer;
  /** Bits of the open requests that have taken effect. */
  readonly applied: number;
}

/** A read under way: everything that the block may have held meanwhile. */
export interface ReadMark {
  readonly seen: Buffer[];
  concurrent: boolean;
}

function outcomes(effect: Effect, content: Buffer): Buffer[] {
  const changed = Buffer.from(content);
  if (effect.kind === 'write') {
    effect.data.copy(changed, effect.at);
    return [changed];
  }
  changed.fill(0, effect.at, effect.at + effect.lengthBytes);
  const whole = effect.at === 0 && effect.lengthBytes === content.length;
  return effect.kind === 'trim' && !whole ? [changed, content] : [changed];
}

export class BlockModel {
  readonly lengthBytes: number;
  #states: State[];
  #open: Open[] = [];
  #reads: ReadMark[] = [];
  readonly #history: string[] = [];

  /** A block of a new volume: zeroes. */
  constructor(lengthBytes: number = BLOCK_BYTES) {
    this.lengthBytes = lengthBytes;
    this.#states = [{ content: Buffer.alloc(lengthBytes), applied: 0 }];
  }

  get openCount(): number {
    return this.#open.length;
  }

  get stateCount(): number {
    return this.#states.length;
  }

  /** A request was sent; returns what `answered` wants. */
  sent(connection: number, effect: Effect): number {
    const used = this.#open.reduce((mask, open) => mask | open.bit, 0);
    let bit = 1;
    while ((used & bit) !== 0) bit <<= 1;
    if (this.#open.length >= OPEN_MAX) throw new RangeError('too many requests for one block');
    const after = this.#open.reduce(
      (mask, open) => (open.connection === connection ? mask | open.bit : mask),
      0,
    );
    this.#open.push({ connection, bit, effect, after });
    for (const read of this.#reads) read.concurrent = true;
    this.#note(`connection ${connection} sends ${describeEffect(effect, this.lengthBytes)} (${bit})`);
    this.#close();
    return bit;
  }

  /** The request was answered with success. */
  answered(bit: number): void {
    this.#note(`answer (${bit})`);
    const kept = this.#states.filter((state) => (state.applied & bit) !== 0);
    this.#open = this.#open
      .filter((open) => open.bit !== bit)
      .map((open) => ({ ...open, after: open.after & ~bit }));
    this.#states = [];
    for (const { content, applied } of kept) this.#add({ content, applied: applied & ~bit });
  }

  beginRead(): ReadMark {
    const mark = { seen: this.#states.map((state) => state.content), concurrent: this.#open.length > 0 };
    this.#reads.push(mark);
    return mark;
  }

  /** Ends a read; returns what is wrong with its content, or null. Null content: the read was not answered. */
  endRead(mark: ReadMark, content: Buffer | null): string | null {
    this.#reads = this.#reads.filter((read) => read !== mark);
    if (content === null || mark.seen.some((seen) => seen.equals(content))) return null;
    if (mark.concurrent && isMixture(content, mark.seen)) return null;
    return this.#mismatch(content, mark.seen);
  }

  /** The process was killed and started again: what the block holds decides. Returns what is wrong with it, or null. */
  settled(content: Buffer): string | null {
    const seen = this.#states.map((state) => state.content);
    const wrong = seen.some((known) => known.equals(content)) ? null : this.#mismatch(content, seen);
    this.#note('killed');
    this.#states = [{ content: Buffer.from(content), applied: 0 }];
    this.#open = [];
    this.#reads = [];
    return wrong;
  }

  #note(event: string): void {
    this.#history.push(event);
    if (this.#history.length > HISTORY_MAX) this.#history.shift();
  }

  #mismatch(content: Buffer, seen: readonly Buffer[]): string {
    return `${mismatch(content, seen)}; its last events: ${this.#history.join(', ')}`;
  }

  #close(): void {
    for (let i = 0; i < this.#states.length; i++) {
      const { content, applied } = this.#states[i]!;
      for (const open of this.#open) {
        if ((applied & open.bit) !== 0) continue;
        const inOrder = (open.after & ~applied) === 0;
        for (const outcome of outcomes(open.effect, content)) {
          // Doing nothing needs no turn.
          if (inOrder || outcome === content) this.#add({ content: outcome, applied: applied | open.bit });
        }
      }
    }
  }

  #add(state: State): void {
    const same = (known: State): boolean =>
      known.applied === state.applied && known.content.equals(state.content);
    if (this.#states.some(same)) return;
    this.#states.push(state);
    for (const read of this.#reads) read.seen.push(state.content);
  }
}

/** A read beside a write of the same block may see part of it: NBD promises no more, but each sector is one of them. */
function isMixture(content: Buffer, seen: readonly Buffer[]): boolean {
  for (let at = 0; at < content.length; at += 512) {
    const sector = content.subarray(at, at + 512);
    if (!seen.some((known) => known.subarray(at, at + 512).equals(sector))) return false;
  }
  return true;
}

function mismatch(content: Buffer, seen: readonly Buffer[]): string {
  const expected = seen.map((known) => {
    let first = 0;
    while (first < content.length && content[first] === known[first]) first++;
    let last = content.length - 1;
    while (last > first && content[last] === known[last]) last--;
    return `${describeContent(known)} (differs in bytes ${first} to ${last})`;
  });
  return `holds ${describeContent(content)}; may hold ${expected.join(' or ')}`;
}

function describeEffect(effect: Effect, blockBytes: number): string {
  const lengthBytes = effect.kind === 'write' ? effect.data.length : effect.lengthBytes;
  const part = lengthBytes === blockBytes ? '' : ` of bytes ${effect.at} to ${effect.at + lengthBytes - 1}`;
  if (effect.kind !== 'write') return `${effect.kind}${part}`;
  return part === '' ? `write of ${describeContent(effect.data)}` : `write${part}`;
}
