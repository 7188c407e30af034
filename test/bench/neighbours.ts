/**
 * What else runs on this host. A cell beside other work says little: the CPUs are shared by all whom we measure, and emulated
 * processors suffer out of proportion when they wait for a real one.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { JIFFY_US, processTreeUs } from './cpu.ts';

/** Of one CPU. */
const QUIET_SHARE_MAX = 0.1;
const LOOK_MS = 500;
/** A cell that others disturbed is measured so often at most. */
const ATTEMPTS_MAX = 3;

/** Time that programs ran or a hypervisor kept from us, from the first line of /proc/stat; interrupts are nobody's. */
export function programsUs(line: string): number {
  const [user = 0, nice = 0, system = 0, , , , , steal = 0] = line.trim().split(/\s+/).slice(1).map(Number);
  return (user + nice + system + steal) * JIFFY_US;
}

/** CPU time so far of all but this process and what it started. */
function othersUs(): number {
  const all = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0] ?? '';
  return programsUs(all) - processTreeUs(process.pid);
}

/** A meter of the share of one CPU that others had since it was read last. */
function othersMeter(): () => number {
  let [atMs, us] = [performance.now(), othersUs()];
  return () => {
    const [nowMs, nowUs] = [performance.now(), othersUs()];
    const share = (nowUs - us) / ((nowMs - atMs) * 1000);
    [atMs, us] = [nowMs, nowUs];
    return Math.max(share, 0);
  };
}

/** Measures while the host is quiet, as far as patience goes. */
export class QuietTimes {
  readonly #readShare: () => number;
  #patienceMs: number;

  /** @param patienceMs for how long all measurements together may wait for others, and be repeated because of them */
  constructor(patienceMs: number, readShare: () => number = othersMeter()) {
    this.#patienceMs = patienceMs;
    this.#readShare = readShare;
  }

  /** The least disturbed of a few measurements, and the share of one CPU that others had meanwhile. */
  async measure<T>(cell: () => Promise<T>): Promise<{ measured: T; othersShare: number }> {
    let best: { measured: T; othersShare: number } | null = null;
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      const startMs = performance.now();
      if (this.#patienceMs > 0) await this.#untilQuiet();
      this.#readShare();
      const waitedMs = performance.now() - startMs;
      const measured = await cell();
      const othersShare = this.#readShare();
      this.#patienceMs -= attempt === 0 ? waitedMs : performance.now() - startMs;
      if (best === null || othersShare < best.othersShare) best = { measured, othersShare };
      if (othersShare <= QUIET_SHARE_MAX || this.#patienceMs <= 0) break;
    }
    return best!;
  }

  async #untilQuiet(): Promise<void> {
    const startMs = performance.now();
    do {
      this.#readShare();
      await sleep(LOOK_MS);
    } while (this.#readShare() > QUIET_SHARE_MAX && performance.now() - startMs < this.#patienceMs);
  }
}
