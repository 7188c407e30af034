/**
 * The control plane's store: one for all of its processes, whose commits take a while, and are made or not when the process
 * dies meanwhile.
 */
import type { ControlEvent } from '@blockwire/control/domain/events.ts';
import { type VolumeRecord, volumes } from '@blockwire/control/domain/records.ts';
import { MemoryStore } from '@blockwire/control/store/memory.ts';
import type { Change, CommitResult, JsonValue, MetadataStore } from '@blockwire/control/store/store.ts';
import type { Mutation } from './mutations.ts';
import type { Process } from './network.ts';
import { mistold } from './told.ts';
import type { World } from './world.ts';

const COMMIT_MS = 0.5;

export class ControlStore {
  readonly #world: World;
  readonly #mutation: Mutation;
  readonly #onVolume: (volume: VolumeRecord) => void;
  readonly #onMistold: (what: string) => void;
  readonly #store = new MemoryStore();
  #volume: VolumeRecord | null = null;

  /** @param options onVolume: the volume's record was committed; onMistold: with events that do not say what it did */
  constructor(options: {
    readonly world: World;
    readonly mutation: Mutation;
    readonly onVolume: (volume: VolumeRecord) => void;
    readonly onMistold: (what: string) => void;
  }) {
    this.#world = options.world;
    this.#mutation = options.mutation;
    this.#onVolume = options.onVolume;
    this.#onMistold = options.onMistold;
  }

  /** The volume as it was committed last. */
  get volume(): VolumeRecord {
    return this.#volume!;
  }

  async create(volume: VolumeRecord): Promise<void> {
    this.#volume = volume;
    await this.#store.commit([volumes.create(volume.id, volume)]);
  }

  /** As one process sees it: an answer that comes after its end is never seen. */
  seenBy(processOf: () => Process): MetadataStore {
    const world = this.#world;
    const commit = (changes: readonly Change[], events?: readonly JsonValue[]): Promise<CommitResult> =>
      new Promise((resolve) => {
        world.after(world.delay(COMMIT_MS), () => {
          // The process has ended meanwhile: its commit arrived in time, or not.
          if (!processOf().isAlive && world.random.oneIn(2)) return;
          world.touch();
          void this.#commit(this.#mutated(changes), events).then((result) => {
            if (result.committed) this.#observe(changes, events);
            processOf().enter(() => {
              world.touch();
              resolve(result);
            });
          });
        });
      });
    return {
      get: (key) => this.#store.get(key),
      list: (prefix) => this.#store.list(prefix),
      events: (afterId, countMax) => this.#store.events(afterId, countMax),
      close: () => this.#store.close(),
      commit,
    };
  }

  async #commit(changes: readonly Change[], events?: readonly JsonValue[]): Promise<CommitResult> {
    if (this.#mutation !== 'ignore-versions') return await this.#store.commit(changes, events);
    const versions = await Promise.all(
      changes.map(async ({ key }) => (await this.#store.get(key))?.version ?? 0),
    );
    return await this.#store.commit(
      changes.map((change, i) => ({ ...change, expectedVersion: versions[i]! })),
      events,
    );
  }

  #mutated(changes: readonly Change[]): readonly Change[] {
    const mutation = this.#mutation;
    if (mutation !== 'keep-rebuild-of-old-writer' && mutation !== 'remove-before-sync') return changes;
    return changes.map((change) => {
      if (!change.key.startsWith('volume/')) return change;
      if (mutation === 'remove-before-sync') return withoutReplaced(change);
      const next = change.value as unknown as VolumeRecord;
      const before = this.volume;
      if (next.generation === before.generation) return change;
      const replicas = next.replicas.map((replica, i) =>
        before.replicas[i]!.state === 'rebuilding' ? before.replicas[i]! : replica,
      );
      return { ...change, value: { ...next, replicas } } as unknown as Change;
    });
  }

  #observe(changes: readonly Change[], events: readonly JsonValue[] = []): void {
    for (const { key, value } of this.#mutated(changes)) {
      if (!key.startsWith('volume/') || value === undefined) continue;
      const before = this.volume;
      this.#volume = value as unknown as VolumeRecord;
      this.#onVolume(this.#volume);
      // What a mutation changes it does not tell.
      const what = mistold(before, this.#volume, events as unknown as readonly ControlEvent[]);
      if (what !== null && this.#mutation === null) this.#onMistold(what);
    }
  }
}

/** Drops what is to be replaced as soon as its replacement is named, for a mutation. */
function withoutReplaced(change: Change): Change {
  const volume = change.value as unknown as VolumeRecord;
  const replaced = volume.replicas.map(({ replaces }) => replaces);
  const replicas = volume.replicas.filter(({ nodeId }) => !replaced.includes(nodeId));
  return { ...change, value: { ...volume, replicas } } as unknown as Change;
}
