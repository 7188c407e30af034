/** The control plane: one process after the other on one store, sometimes two at a time. */
import type { Attachments } from '@blockwire/control/domain/attachments.ts';
import type { Context } from '@blockwire/control/domain/context.ts';
import type { VolumeRecord } from '@blockwire/control/domain/records.ts';
import { setDraining } from '@blockwire/control/domain/registry.ts';
import { type BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { ControlProcess } from './control-process.ts';
import { ControlStore } from './control-store.ts';
import { isError, Members, type MembersHost } from './members.ts';
import type { Process } from './network.ts';

/** How long one that was replaced still acts. */
const SECOND_LIFE_MS = 2000;

export interface ControlHost extends MembersHost {
  /** A volume's record was committed. */
  onVolume(volume: VolumeRecord): void;
  /** Its events do not say what a commit did. */
  onMistold(what: string): void;
}

export class SimControl {
  readonly members: Members;
  readonly #host: ControlHost;
  readonly #store: ControlStore;
  #current: ControlProcess | null = null;
  /** Paused, and taken for dead: another one has its place. */
  readonly #others: ControlProcess[] = [];
  #ids = 0;

  constructor(host: ControlHost) {
    const { world, mutation } = host;
    this.#host = host;
    this.#store = new ControlStore({
      ...{ world, mutation },
      onVolume: (volume) => host.onVolume(volume),
      onMistold: (what) => host.onMistold(what),
    });
    this.members = new Members(host, () => this.#current);
  }

  /** The volume as it was committed last. */
  get volume(): VolumeRecord {
    return this.#store.volume;
  }

  get process(): Process | null {
    return this.#current?.process ?? null;
  }

  create(volume: VolumeRecord): Promise<void> {
    return this.#store.create(volume);
  }

  start(): void {
    if (this.#current !== null) return;
    const { world, mutation } = this.#host;
    const store = this.#store.seenBy(() => current.process);
    const newId = (prefix: string): string => `${prefix}-${++this.#ids}`;
    const current: ControlProcess = new ControlProcess({ world, mutation, store, newId });
    this.#current = current;
  }

  kill(): void {
    this.#current?.process.kill();
    this.#current = null;
  }

  /** It stops for a while; meanwhile another one begins, on the same store, and both go on. */
  replace(takeoverMs: number, pauseMs: number): void {
    const replaced = this.#current;
    if (replaced === null) return;
    const { world } = this.#host;
    replaced.process.stop();
    world.after(takeoverMs, () => {
      if (this.#current !== replaced) return;
      this.#others.push(replaced);
      this.#current = null;
      this.start();
    });
    world.after(pauseMs, () => replaced.process.continue());
    world.after(pauseMs + SECOND_LIFE_MS, () => this.#others.includes(replaced) && replaced.process.kill());
  }

  /** Only one goes on, awake. */
  settle(): void {
    for (const { process } of this.#others.splice(0)) process.kill();
    this.#current?.process.continue();
    this.start();
  }

  /** Something the operator asks; false when nobody is there to answer. No answer comes from a process that dies meanwhile. */
  ask<T>(
    run: (attachments: Attachments, context: Context) => Promise<T>,
    answered: (answer: T | BlockwireError) => void,
  ): boolean {
    if (this.#current === null) return false;
    const { process, attachments, context } = this.#current;
    this.#host.world.touch();
    run(attachments, context).then(
      (answer) => process.enter(() => answered(answer)),
      (error: unknown) => process.enter(() => answered(toBlockwireError(error))),
    );
    return true;
  }

  /** A node is to be emptied, or not any more. */
  drain(nodeId: string, isDraining: boolean, done: () => void): void {
    this.ask(
      (_attachments, context) => setDraining(context, nodeId, isDraining),
      (answer) => !isError(answer) && done(),
    );
  }
}
