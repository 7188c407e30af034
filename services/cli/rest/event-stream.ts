/** Server-sent events as they come in: text in any pieces to frames (WHATWG HTML, "Server-sent events"). */

export interface Frame {
  /** The last id that was sent, also by a frame without data; null when there was none yet. */
  readonly id: string | null;
  /** `message` unless the server names another kind. */
  readonly kind: string;
  /** Null: a sign of life. */
  readonly data: string | null;
}

export class FrameParser {
  #rest = '';
  #id: string | null = null;
  #kind = 'message';
  #data: string[] = [];

  /** The frames that this piece completes. */
  *push(text: string): Generator<Frame> {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line === '') yield this.#take();
      else this.#field(line);
    }
  }

  #field(line: string): void {
    const colon = line.indexOf(':');
    const name = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'id') this.#id = value;
    if (name === 'event') this.#kind = value;
    if (name === 'data') this.#data.push(value);
  }

  #take(): Frame {
    const data = this.#data.length === 0 ? null : this.#data.join('\n');
    const frame = { id: this.#id, kind: this.#kind, data };
    this.#kind = 'message';
    this.#data = [];
    return frame;
  }
}
