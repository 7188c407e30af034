/** What a run shows: a line for each step with the time since the start, and one line that moves while data is copied. */
export class Console {
  readonly #stream: NodeJS.WriteStream;
  readonly #startedMs = performance.now();
  #moving = false;
  #lastTenth = -1;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
  }

  get seconds(): number {
    return (performance.now() - this.#startedMs) / 1000;
  }

  step(message: string): void {
    this.#endMoving();
    this.#stream.write(`[${this.seconds.toFixed(1).padStart(6)} s] ${message}\n`);
  }

  /** Something without a time. */
  text(message: string): void {
    this.#endMoving();
    this.#stream.write(`${message}\n`);
  }

  /** On a terminal a line that is written over; elsewhere a line every tenth of the way. */
  progress(what: string, doneBytes: number, totalBytes: number): void {
    const share = Math.min(1, doneBytes / totalBytes);
    const message = `${what}: ${megabytes(share * totalBytes)} of ${megabytes(totalBytes)} (${Math.floor(share * 100)} %)`;
    if (this.#stream.isTTY) {
      this.#moving = true;
      this.#stream.write(`\r\u001b[K[${this.seconds.toFixed(1).padStart(6)} s]   ${message}`);
    } else if (Math.floor(share * 10) > this.#lastTenth) {
      this.#lastTenth = Math.floor(share * 10);
      this.step(`  ${message}`);
    }
  }

  #endMoving(): void {
    if (this.#moving) this.#stream.write('\n');
    this.#moving = false;
  }
}

/** Decimal, as disks are sold. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
