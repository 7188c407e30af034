/**
 * Processes and what is between them: messages that are lost, and connections that keep their order, stall while their
 * ends cannot reach each other, and break on one side before the other.
 */
import type { World } from './world.ts';

const WIRE_MS = 0.3;
const STALLED_MS_MAX = 120;
const THREAD_MS = 0.02;
/** A thread that is not run for a while, once in so many messages. */
const PREEMPTED_ONE_IN = 40;
const PREEMPTED_MS_MAX = 30;

/** One end of a connection. */
export interface Peer<In> {
  received(message: In): void;
  /** The other side is gone, or so it seems. */
  closed(): void;
}

export interface Connection<Out> {
  send(message: Out): void;
  close(): void;
}

/** A process: gone when it is killed, deaf while it is stopped. */
export class Process {
  readonly name: string;
  readonly #world: World;
  isAlive = true;
  /** Its machine failed: what it sent and did not arrive never will. */
  hasLostPower = false;
  #isStopped = false;
  #held: (() => void)[] = [];
  readonly #onKill: (() => void)[] = [];

  constructor(world: World, name: string) {
    this.#world = world;
    this.name = name;
  }

  /** Runs later, if the process still is; while it is stopped, it waits. */
  after(delayMs: number, run: () => void): void {
    this.#world.after(delayMs, () => this.enter(run));
  }

  every(intervalMs: number, run: () => void): void {
    this.after(intervalMs, () => {
      run();
      if (this.isAlive) this.every(intervalMs, run);
    });
  }

  enter(run: () => void): void {
    if (!this.isAlive) return;
    if (this.#isStopped) this.#held.push(run);
    else run();
  }

  stop(): void {
    this.#isStopped = true;
  }

  continue(): void {
    this.#isStopped = false;
    const held = this.#held;
    this.#held = [];
    for (const run of held) this.enter(run);
  }

  onKill(run: () => void): void {
    this.#onKill.push(run);
  }

  kill(): void {
    if (!this.isAlive) return;
    this.isAlive = false;
    this.#held = [];
    for (const run of this.#onKill) run();
  }
}

/** Messages from one thread of a process to another, in order. */
export class Mailbox {
  readonly #world: World;
  readonly #process: Process;
  #lastAt = 0;

  constructor(world: World, process: Process) {
    this.#world = world;
    this.#process = process;
  }

  /** Whatever is posted from now on arrives behind this. */
  hold(milliseconds: number): void {
    this.#lastAt = Math.max(this.#world.now + milliseconds, this.#lastAt);
  }

  post(run: () => void): void {
    const world = this.#world;
    const isPreempted = world.random.oneIn(PREEMPTED_ONE_IN);
    const delayMs = isPreempted ? world.between(1, PREEMPTED_MS_MAX) : world.delay(THREAD_MS);
    this.#lastAt = Math.max(world.now + delayMs, this.#lastAt);
    this.#process.after(this.#lastAt - world.now, run);
  }
}

export class Network {
  readonly #world: World;
  readonly #cut = new Set<string>();
  /** By pair and direction: when the last message arrives. */
  readonly #order = new Map<string, number>();
  /** What waits for two hosts to reach each other again. */
  #stalled: { readonly a: string; readonly b: string; readonly run: () => void }[] = [];

  constructor(world: World) {
    this.#world = world;
  }

  isCut(a: string, b: string): boolean {
    return this.#cut.has(pair(a, b));
  }

  cut(a: string, b: string): void {
    this.#cut.add(pair(a, b));
  }

  heal(a: string, b: string): void {
    this.#cut.delete(pair(a, b));
    this.#release();
  }

  healAll(): void {
    this.#cut.clear();
    this.#release();
  }

  /** A message from one host to another: lost while they cannot reach each other; otherwise in order. */
  message(from: string, to: string, deliver: () => void): void {
    if (this.isCut(from, to)) return;
    const key = `${from}>${to}`;
    const at = Math.max(this.#world.now + this.#world.delay(WIRE_MS), (this.#order.get(key) ?? 0) + 0.001);
    this.#order.set(key, at);
    this.#world.after(at - this.#world.now, () => {
      if (!this.isCut(from, to)) deliver();
    });
  }

  /** Runs when two hosts can reach each other. */
  whenReachable(a: string, b: string, run: () => void): void {
    if (this.isCut(a, b)) this.#stalled.push({ a, b, run });
    else run();
  }

  #release(): void {
    const stalled = this.#stalled;
    this.#stalled = [];
    for (const { a, b, run } of stalled) this.whenReachable(a, b, run);
  }
}

/** One direction of a connection. */
class Channel<Message> {
  readonly #world: World;
  readonly #network: Network;
  readonly #from: Process;
  readonly #to: Process;
  readonly #deliver: (message: Message) => void;
  #lastAt = 0;
  readonly #queue: Message[] = [];
  #isMoving = false;
  isOpen = true;

  constructor(
    world: World,
    network: Network,
    ends: { readonly from: Process; readonly to: Process },
    deliver: (message: Message) => void,
  ) {
    this.#world = world;
    this.#network = network;
    this.#from = ends.from;
    this.#to = ends.to;
    this.#deliver = deliver;
  }

  send(message: Message): void {
    if (!this.isOpen) return;
    this.#queue.push(message);
    this.#move();
  }

  #move(): void {
    if (this.#isMoving || this.#queue.length === 0) return;
    this.#isMoving = true;
    const at = Math.max(this.#world.now + this.#world.delay(WIRE_MS), this.#lastAt);
    this.#lastAt = at;
    this.#world.after(at - this.#world.now, () => {
      const isStalled = this.#network.isCut(this.#from.name, this.#to.name);
      this.#network.whenReachable(this.#from.name, this.#to.name, () => {
        // One that has stalled tries again when it likes to: newer connections may be faster.
        if (isStalled) this.#world.after(this.#world.between(0, STALLED_MS_MAX), () => this.#arrive());
        else this.#arrive();
      });
    });
  }

  #arrive(): void {
    this.#isMoving = false;
    const message = this.#queue.shift();
    if (message === undefined) return;
    // What is on its way arrives even when its sender is gone by then.
    if (this.isOpen && !this.#from.hasLostPower) {
      this.#to.enter(() => this.isOpen && this.#deliver(message));
    }
    this.#move();
  }
}

export interface ConnectionEnds<ToServer, ToClient> {
  readonly client: Process;
  readonly server: Process;
  readonly clientPeer: Peer<ToClient>;
  /** Makes the server's end when the connection arrives there. */
  readonly accept: (connection: Connection<ToClient>) => Peer<ToServer>;
}

/** Opens a connection; what the client sends before it is accepted waits. The server may be told late, or never, that it broke. */
export function connect<ToServer, ToClient>(
  world: World,
  network: Network,
  ends: ConnectionEnds<ToServer, ToClient>,
): Connection<ToServer> {
  const { client, server, clientPeer, accept } = ends;
  let serverPeer: Peer<ToServer> | null = null;
  let isClientOpen = true;
  let isServerOpen = false;
  const toServer = new Channel<ToServer>(world, network, { from: client, to: server }, (message) => {
    if (isServerOpen) serverPeer!.received(message);
  });
  const toClient = new Channel<ToClient>(world, network, { from: server, to: client }, (message) => {
    if (isClientOpen) clientPeer.received(message);
  });
  const tellClient = (): void => {
    world.after(world.delay(WIRE_MS), () =>
      network.whenReachable(client.name, server.name, () =>
        client.enter(() => {
          if (!isClientOpen) return;
          isClientOpen = false;
          toClient.isOpen = false;
          clientPeer.closed();
        }),
      ),
    );
  };
  const tellServer = (): void => {
    // What had been sent may still be read first: a reset does not empty a receive queue. Sometimes nobody tells at all.
    if (world.random.oneIn(2)) return;
    world.after(world.delay(WIRE_MS * 4), () =>
      network.whenReachable(client.name, server.name, () =>
        server.enter(() => {
          if (!isServerOpen) return;
          isServerOpen = false;
          toServer.isOpen = false;
          serverPeer!.closed();
        }),
      ),
    );
  };
  world.after(world.delay(WIRE_MS), () =>
    network.whenReachable(client.name, server.name, () => {
      if (!server.isAlive) {
        tellClient();
        return;
      }
      server.enter(() => {
        isServerOpen = true;
        serverPeer = accept({
          send: (message) => toClient.send(message),
          close: () => {
            if (!isServerOpen) return;
            isServerOpen = false;
            toServer.isOpen = false;
            tellClient();
          },
        });
        for (const message of early) toServer.send(message);
        early.length = 0;
        if (!isClientOpen) tellServer();
      });
    }),
  );
  const early: ToServer[] = [];
  server.onKill(tellClient);
  client.onKill(() => {
    isClientOpen = false;
    if (isServerOpen) tellServer();
  });
  return {
    send: (message) => {
      if (!isClientOpen) return;
      if (isServerOpen || serverPeer !== null) toServer.send(message);
      else early.push(message);
    },
    close: () => {
      if (!isClientOpen) return;
      isClientOpen = false;
      toClient.isOpen = false;
      if (isServerOpen) tellServer();
    },
  };
}

function pair(a: string, b: string): string {
  return a < b ? `${a}|${b}` : `${b}|${a}`;
}
