/**
 * Who is connected now, and the commands on their way to them: one fleet of storage nodes, one of agents.
 *
 * A member registers, opens a watch and sends heartbeats. It is online while its watch is open and it was
 * heard of within `missedMax` intervals. A command ends exactly once: completed by the member, at its
 * deadline, or because the member went offline; in the last two cases nobody knows whether it was carried
 * out, which is why every command is safe to repeat and every rollback leaves a tombstone.
 */
import { BlockwireError, type ErrorCode } from '@blockwire/shared/errors.ts';

/** Commands of one member that wait for their outcome. */
const OUTSTANDING_MAX = 1024;

/** Where timers come from: the process's own, or a simulator's. */
export interface Timers {
  set(run: () => void, delayMs: number): unknown;
  clear(timer: unknown): void;
}

const REAL_TIMERS: Timers = {
  set: (run, delayMs) => setTimeout(run, delayMs),
  clear: (timer) => clearTimeout(timer as NodeJS.Timeout),
};

export interface FleetOptions {
  /** What a member is called in messages: `node` or `agent`. */
  readonly noun: string;
  readonly offlineCode: ErrorCode;
  readonly unknownCode: ErrorCode;
  readonly heartbeatIntervalMs: number;
  readonly missedMax: number;
  /** A member gone for less than this may be on its way back: see `waitOnline`. */
  readonly reconnectGraceMs: number;
  readonly now: () => number;
  /** Default: the process's own. */
  readonly timers?: Timers;
  readonly newCommandId: () => string;
  readonly onChange: (id: string, online: boolean) => void;
}

/** Where a member's commands go: its watch stream. */
export interface CommandSink<Action> {
  deliver(commandId: string, action: Action): void;
  /** Ends the watch; the member is expected to register again. */
  end(): void;
}

interface Outstanding<Result> {
  readonly resolve: (result: Result) => void;
  readonly reject: (error: BlockwireError) => void;
  readonly timer: unknown;
}

interface Member<Action, Result> {
  readonly id: string;
  heardAt: number;
  goneAt: number;
  sink: CommandSink<Action> | null;
  readonly outstanding: Map<string, Outstanding<Result>>;
  readonly waiters: Set<(online: boolean) => void>;
}

export class Fleet<Action, Result> {
  readonly #options: FleetOptions;
  readonly #timers: Timers;
  readonly #startedAt: number;
  readonly #members = new Map<string, Member<Action, Result>>();
  #closed = false;

  constructor(options: FleetOptions) {
    this.#options = options;
    this.#timers = options.timers ?? REAL_TIMERS;
    this.#startedAt = options.now();
  }

  get heartbeatIntervalMs(): number {
    return this.#options.heartbeatIntervalMs;
  }

  get outstandingCount(): number {
    let count = 0;
    for (const { outstanding } of this.#members.values()) count += outstanding.size;
    return count;
  }

  onlineIds(): string[] {
    return [...this.#members.values()].filter(({ sink }) => sink !== null).map(({ id }) => id);
  }

  isOnline(id: string): boolean {
    return (this.#members.get(id)?.sink ?? null) !== null;
  }

  /** How long the member has been away; 0 while it is online. One not heard of yet: since this process started. */
  goneMs(id: string): number {
    if (this.isOnline(id)) return 0;
    return this.#options.now() - (this.#members.get(id)?.goneAt ?? this.#startedAt);
  }

  /** The member is connecting anew: nothing reaches it by its old watch any more. */
  depart(id: string): void {
    const member = this.#members.get(id);
    if (member !== undefined) this.#goOffline(member);
  }

  register(id: string): void {
    this.#refuseWhenClosed();
    this.#member(id).heardAt = this.#options.now();
  }

  /** Throws the fleet's unknown code when the member did not register since this process started. */
  heartbeat(id: string): void {
    this.#known(id).heardAt = this.#options.now();
  }

  /**
   * Makes the member online; an older watch of it ends. Returns what the caller runs when the stream closes.
   * Throws the fleet's unknown code when the member did not register since this process started.
   */
  openWatch(id: string, sink: CommandSink<Action>): () => void {
    this.#refuseWhenClosed();
    const member = this.#known(id);
    this.#goOffline(member);
    member.heardAt = this.#options.now();
    member.sink = sink;
    for (const wake of [...member.waiters]) wake(true);
    this.#options.onChange(id, true);
    return () => {
      if (member.sink === sink) this.#goOffline(member);
    };
  }

  /**
   * Sends a command and waits for its outcome. Rejects with what the member answered, with the fleet's
   * offline code, or with BW_TIMEOUT at the deadline.
   */
  dispatch(id: string, action: Action, options: { readonly deadlineMs: number }): Promise<Result> {
    return new Promise((resolve, reject) => {
      this.#refuseWhenClosed();
      const member = this.#members.get(id);
      if (member === undefined || member.sink === null) throw this.#offline(id);
      if (member.outstanding.size >= OUTSTANDING_MAX) {
        throw new BlockwireError(
          'BW_OVERLOADED',
          `${this.#options.noun} ${id} has ${OUTSTANDING_MAX} commands`,
        );
      }
      const commandId = this.#options.newCommandId();
      const timer = this.#timers.set(() => {
        member.outstanding.delete(commandId);
        reject(
          new BlockwireError(
            'BW_TIMEOUT',
            `${this.#options.noun} ${id} did not answer within ${options.deadlineMs} ms`,
          ),
        );
      }, options.deadlineMs);
      member.outstanding.set(commandId, { resolve, reject, timer });
      member.sink.deliver(commandId, action);
    });
  }

  /** The outcome of a command. One that nobody waits for any more (late, or repeated) is dropped. */
  complete(id: string, commandId: string, outcome: BlockwireError | { readonly result: Result }): void {
    const member = this.#known(id);
    member.heardAt = this.#options.now();
    const waiting = member.outstanding.get(commandId);
    if (waiting === undefined) return;
    member.outstanding.delete(commandId);
    this.#timers.clear(waiting.timer);
    if (outcome instanceof BlockwireError) waiting.reject(outcome);
    else waiting.resolve(outcome.result);
  }

  /**
   * True once the member is online; false when it is not and its time to reconnect is over. After a start of
   * this process everybody has that time, so that a restart does not look like the loss of all nodes.
   */
  waitOnline(id: string): Promise<boolean> {
    if (this.isOnline(id)) return Promise.resolve(true);
    const known = this.#members.get(id);
    // One that has just registered is about to open its watch, however long it was gone before.
    const lastSignAt = known === undefined ? this.#startedAt : Math.max(known.goneAt, known.heardAt);
    const leftMs = lastSignAt + this.#options.reconnectGraceMs - this.#options.now();
    if (this.#closed || leftMs <= 0) return Promise.resolve(false);
    const member = this.#member(id);
    return new Promise((resolve) => {
      const wake = (online: boolean): void => {
        this.#timers.clear(timer);
        member.waiters.delete(wake);
        resolve(online);
      };
      const timer = this.#timers.set(() => wake(false), leftMs);
      member.waiters.add(wake);
    });
  }

  /** Takes members offline that were not heard of for too long. To be called every interval or more often. */
  tick(): void {
    const { heartbeatIntervalMs, missedMax, now } = this.#options;
    const heardAtMin = now() - heartbeatIntervalMs * missedMax;
    for (const member of this.#members.values()) {
      if (member.sink !== null && member.heardAt < heardAtMin) this.#goOffline(member);
    }
  }

  /** Ends every watch and fails every command with BW_SHUTTING_DOWN; nothing is accepted afterwards. */
  close(): void {
    this.#closed = true;
    for (const member of this.#members.values()) {
      for (const wake of [...member.waiters]) wake(false);
      this.#goOffline(member, new BlockwireError('BW_SHUTTING_DOWN', 'the control plane is stopping'));
    }
  }

  #member(id: string): Member<Action, Result> {
    let member = this.#members.get(id);
    if (member === undefined) {
      member = {
        id,
        heardAt: this.#startedAt,
        goneAt: this.#startedAt,
        sink: null,
        outstanding: new Map(),
        waiters: new Set(),
      };
      this.#members.set(id, member);
    }
    return member;
  }

  #known(id: string): Member<Action, Result> {
    const member = this.#members.get(id);
    if (member === undefined) {
      const { unknownCode, noun } = this.#options;
      throw new BlockwireError(unknownCode, `${noun} ${id} is not registered; call Register first`);
    }
    return member;
  }

  #goOffline(member: Member<Action, Result>, reason = this.#offline(member.id)): void {
    const { sink } = member;
    if (sink === null) return;
    member.sink = null;
    member.goneAt = this.#options.now();
    for (const { reject, timer } of member.outstanding.values()) {
      this.#timers.clear(timer);
      reject(reason);
    }
    member.outstanding.clear();
    sink.end();
    // At our own end we know nothing of theirs.
    if (!this.#closed) this.#options.onChange(member.id, false);
  }

  #offline(id: string): BlockwireError {
    const { offlineCode, noun } = this.#options;
    return new BlockwireError(offlineCode, `${noun} ${id} is offline`, { details: { [noun]: id } });
  }

  #refuseWhenClosed(): void {
    if (this.#closed) throw new BlockwireError('BW_SHUTTING_DOWN', 'the control plane is stopping');
  }
}
