/**
 * Whether a device's I/O is served: looks at its links at every change, logs what an operator has to know, and decides
 * when I/O waits, and when it fails.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { type IoState, IoWatch } from './io-watch.ts';
import type { LinkStatus } from './queues.ts';

export interface AvailabilityOptions {
  readonly log: Logger;
  readonly volumeId: string;
  readonly ioTimeoutMs: number;
  readonly link: (replica: number) => LinkStatus;
  readonly nodeIdOf: (replica: number) => string;
  /** Whether every queue reaches an in-sync replica. */
  readonly isServed: () => boolean;
  /** What the log says of the device's replicas. */
  readonly replicas: () => object;
  /** Lets requests that nobody can serve fail, or wait again. */
  readonly failUnserved: (on: boolean) => void;
}

export class Availability {
  readonly #options: AvailabilityOptions;
  readonly #io: IoWatch;
  /** By replica: whether it was connected when last looked at. */
  readonly #wasUp = new Map<number, boolean>();
  #changed = Promise.withResolvers<void>();
  #isLive = false;
  #isEnded = false;

  constructor(options: AvailabilityOptions) {
    this.#options = options;
    this.#io = new IoWatch({
      timeoutMs: options.ioTimeoutMs,
      after: (milliseconds, step) => {
        const timer = setTimeout(step, milliseconds);
        return () => clearTimeout(timer);
      },
      onChange: (state, before) => this.#ioChanged(state, before),
    });
  }

  get ioState(): IoState {
    return this.#io.state;
  }

  /** The device lives: from now on it counts whether its I/O is served. */
  begin(): void {
    this.#isLive = true;
    this.#watch();
  }

  end(): void {
    this.#isEnded = true;
    this.#io.stop();
    this.#changed.resolve();
  }

  /** All I/O fails from now on, whoever answers. */
  giveUp(): void {
    this.#io.giveUp();
  }

  /** A link came up or broke. */
  linked(replica: number): void {
    const { log, volumeId, link, nodeIdOf } = this.#options;
    const { seen, up, reason } = link(replica);
    if (seen && up !== this.#wasUp.get(replica)) {
      const change = up ? 'replica connected' : 'replica disconnected';
      if (this.#isLive && !this.#isEnded)
        log.info({ volume: volumeId, node: nodeIdOf(replica), reason }, change);
      this.#wasUp.set(replica, up);
    }
    this.changed();
  }

  /** A link or the membership changed. */
  changed(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
    this.#watch();
  }

  /** Resolves when every queue reaches an in-sync replica. Throws BW_SHUTTING_DOWN. */
  async served(): Promise<void> {
    while (!this.#options.isServed()) {
      if (this.#isEnded) throw new BlockwireError('BW_SHUTTING_DOWN', 'the device is being given up');
      await this.#changed.promise;
    }
  }

  /**
   * Resolves when every one of these replicas was tried and every queue reaches one in sync; after `milliseconds` also if
   * only the latter is so. Throws BW_NO_IN_SYNC_REPLICA.
   */
  async connected(replicas: readonly number[], milliseconds: number, ended: Promise<void>): Promise<void> {
    const { isServed, link, nodeIdOf } = this.#options;
    const deadlineMs = performance.now() + milliseconds;
    for (;;) {
      const served = isServed();
      if (served && replicas.every((replica) => link(replica).seen)) return;
      const leftMs = deadlineMs - performance.now();
      if (leftMs <= 0) {
        if (served) return;
        const reasons = replicas.map(
          (replica) => `${nodeIdOf(replica)}: ${link(replica).reason || 'no answer'}`,
        );
        throw new BlockwireError(
          'BW_NO_IN_SYNC_REPLICA',
          `no in-sync replica can be reached (${reasons.join('; ')})`,
        );
      }
      await Promise.race([this.#changed.promise, ended, sleep(leftMs)]);
    }
  }

  #watch(): void {
    if (this.#isLive && !this.#isEnded) this.#io.served(this.#options.isServed());
  }

  #ioChanged(state: IoState, before: IoState): void {
    const { log, volumeId, ioTimeoutMs, failUnserved } = this.#options;
    const about = { volume: volumeId, replicas: this.#options.replicas() };
    if (state === 'ok') log.info(about, 'I/O goes on');
    else if (state === 'waiting') log.warn(about, 'no in-sync replica answers: I/O waits');
    else if (state === 'failing')
      log.error(about, `no in-sync replica has answered for ${ioTimeoutMs} ms: I/O fails`);
    if (state === 'failing' || before === 'failing') failUnserved(state === 'failing');
  }
}
