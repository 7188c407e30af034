/** One process of the control plane: its real domain, on a store and a clock that are given. */
import { Attachments } from '@blockwire/control/domain/attachments.ts';
import {
  type Context,
  DEFAULT_POLICY,
  DEFAULT_TIMING,
  type Policy,
  type Timing,
} from '@blockwire/control/domain/context.ts';
import { ControlEvents, EventStore } from '@blockwire/control/domain/events.ts';
import { Fleet } from '@blockwire/control/domain/fleet.ts';
import { Rebuilder } from '@blockwire/control/domain/rebuilds.ts';
import { TombstoneCollector } from '@blockwire/control/domain/tombstones.ts';
import type { MetadataStore } from '@blockwire/control/store/store.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { Mutation } from './mutations.ts';
import { Process } from './network.ts';
import type { World } from './world.ts';

export const CONTROL = 'control';

const TIMING: Timing = {
  ...DEFAULT_TIMING,
  ...{ heartbeatIntervalMs: 200, missedMax: 3, reconnectGraceMs: 300, installEpochMs: 400, attachMs: 3000 },
  ...{ detachMs: 1500, reconcileMs: 500, membershipMs: 1500, deleteReplicaMs: 1000, createReplicaMs: 1000 },
  ...{ resizeMs: 600, pauseMsMin: 100, pauseMsMax: 800 },
};
const POLICY: Policy = { ...DEFAULT_POLICY, replaceAfterMs: 900 };
const SWEEP_MS = 150;

const SILENT = { info() {}, warn() {}, error() {}, debug() {} } as unknown as Logger;

/** One process of the control plane. */
export class ControlProcess {
  readonly process: Process;
  readonly context: Context;
  readonly attachments: Attachments;
  readonly rebuilder: Rebuilder;

  constructor(options: {
    readonly world: World;
    readonly mutation: Mutation;
    readonly store: MetadataStore;
    readonly newId: (prefix: string) => string;
  }) {
    const { world, mutation, store, newId } = options;
    this.process = new Process(world, CONTROL);
    const { process } = this;
    const events = new ControlEvents();
    const now = (): number => world.now;
    const timers = {
      set: (run: () => void, delayMs: number) => {
        const timer = { isCleared: false };
        process.after(delayMs, () => {
          if (timer.isCleared) return;
          world.touch();
          run();
        });
        return timer;
      },
      clear: (timer: unknown) => {
        (timer as { isCleared: boolean }).isCleared = true;
      },
    };
    const shared = {
      ...{ heartbeatIntervalMs: TIMING.heartbeatIntervalMs, missedMax: TIMING.missedMax, timers },
      ...{ reconnectGraceMs: TIMING.reconnectGraceMs, now },
      newCommandId: () => newId('cmd'),
    };
    this.context = {
      exportNames: { nameOf: ({ id }) => id },
      store: new EventStore(store, { events, log: SILENT, now }),
      ...{ events, log: SILENT, timing: TIMING, policy: POLICY, now, newId },
      nodeFleet: new Fleet({
        ...{ ...shared, noun: 'node', offlineCode: 'BW_NODE_OFFLINE', unknownCode: 'BW_NODE_NOT_FOUND' },
        onChange: (_id, online) => online && this.#memberCame(world),
      }),
      agentFleet: new Fleet({
        ...{ ...shared, noun: 'agent', offlineCode: 'BW_AGENT_OFFLINE', unknownCode: 'BW_AGENT_NOT_FOUND' },
        onChange: (_id, online) => online && this.#memberCame(world),
      }),
    };
    const tombstones = new TombstoneCollector(this.context);
    this.attachments = new Attachments(this.context, tombstones, {
      reconciles: mutation !== 'skip-reconcile',
    });
    this.rebuilder = new Rebuilder(this.context, tombstones);
    process.every(TIMING.heartbeatIntervalMs / 2, () => {
      world.touch();
      this.context.nodeFleet.tick();
      this.context.agentFleet.tick();
    });
    process.every(SWEEP_MS, () => this.#sweep(world));
    process.every(SWEEP_MS * 8, () => {
      world.touch();
      void tombstones.sweep();
    });
    world.touch();
    void this.attachments.recover();
  }

  #memberCame(world: World): void {
    world.touch();
    this.rebuilder.memberCame();
  }

  #sweep(world: World): void {
    world.touch();
    void this.rebuilder.sweep();
  }
}
