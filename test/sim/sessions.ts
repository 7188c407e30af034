/** The connections of a simulated node: who is admitted, who is cut, what becomes of a request. */
import { FreshMap } from '@blockwire/node/replication/fresh.ts';
import type { Cut, ReplicaMembership } from '@blockwire/node/replication/membership.ts';
import type { BlockwireError } from '@blockwire/shared/errors.ts';
import type { Mutation } from './mutations.ts';
import type { Connection, Peer } from './network.ts';
import { type SimReplica, unitsOf } from './replica.ts';
import type { ToClient, ToNode } from './wire.ts';
import type { World } from './world.ts';

interface Session {
  readonly owner: number;
  readonly connection: Connection<ToClient>;
  link: string;
  attempt: number;
  generation: number;
  isAdmitted: boolean;
  isCut: boolean;
}

const READ_MS = 0.4;
const EIO = 5;

export class Sessions {
  readonly #world: World;
  readonly #membership: ReplicaMembership;
  readonly #replica: SimReplica;
  readonly #mutation: Mutation;
  readonly #enter: (run: () => void) => void;
  readonly #onDamage: (units: readonly number[]) => void;
  readonly #sessions = new Set<Session>();
  /** By link: its latest attempt. */
  readonly #attempts = new Map<string, number>();
  #owners = 0;

  constructor(options: {
    readonly world: World;
    readonly membership: ReplicaMembership;
    readonly replica: SimReplica;
    readonly mutation: Mutation;
    readonly enter: (run: () => void) => void;
    /** A read has found a checksum that does not match. */
    readonly onDamage: (units: readonly number[]) => void;
  }) {
    this.#world = options.world;
    this.#membership = options.membership;
    this.#replica = options.replica;
    this.#mutation = options.mutation;
    this.#enter = options.enter;
    this.#onDamage = options.onDamage;
  }

  accept(connection: Connection<ToClient>): Peer<ToNode> {
    const session: Session = {
      owner: ++this.#owners,
      connection,
      ...{ link: '', attempt: 0, generation: 0, isAdmitted: false, isCut: false },
    };
    this.#sessions.add(session);
    return {
      received: (message) => this.#received(session, message),
      closed: () => this.#end(session),
    };
  }

  /** Cuts connections; `done` runs when nothing of theirs is at work. */
  cut(which: Cut, generation: number, done: () => void): void {
    const ending = [...this.#sessions].filter(
      (session) => which === 'all' || (which === 'olderGenerations' && session.generation < generation),
    );
    this.#cutAll(ending, done);
  }

  #cutAll(ending: readonly Session[], done: () => void): void {
    for (const session of ending) {
      this.#end(session);
      session.connection.close();
    }
    this.#replica.drop(new Set(ending.map(({ owner }) => owner)), done);
  }

  /** It stays until nothing of it is at work: whoever cuts it later has to wait for that, too. */
  #end(session: Session): void {
    if (session.isCut) return;
    session.isCut = true;
    this.#replica.drop(new Set([session.owner]), () => this.#sessions.delete(session));
  }

  #received(session: Session, message: ToNode): void {
    if (session.isCut) return;
    if (message.type === 'hello') this.#hello(session, message);
    else if (session.isAdmitted) this.#request(session, message);
  }

  #hello(session: Session, hello: Extract<ToNode, { type: 'hello' }>): void {
    const { claim, link, attempt } = hello;
    const refuse = (code: string): void => {
      session.connection.send({ type: 'refused', code });
      this.#end(session);
    };
    const admit = (): boolean => {
      if (this.#mutation === 'repair-from-any' && link.endsWith('/repair')) return true;
      try {
        const { generation, epoch } = this.#membership.installed;
        this.#membership.admit({
          ...claim,
          generation: this.#mutation === 'skip-generation-check' ? generation : claim.generation,
          epoch: this.#mutation === 'skip-epoch-check' ? epoch : claim.epoch,
        });
        return true;
      } catch (error) {
        refuse((error as BlockwireError).code);
        return false;
      }
    };
    session.link = link;
    session.attempt = attempt;
    session.generation = claim.generation;
    const isFenced = this.#mutation !== 'no-session-fence';
    if (isFenced && attempt < (this.#attempts.get(link) ?? 0)) {
      refuse('BW_CONFLICT');
      return;
    }
    if (!admit()) return;
    this.#attempts.set(link, attempt);
    const earlier = [...this.#sessions].filter((other) => other.link === link && other.attempt < attempt);
    this.#cutAll(isFenced ? earlier : [], () => {
      if (session.isCut || !admit()) return;
      session.isAdmitted = true;
      session.connection.send({ type: 'welcome' });
    });
  }

  #request(session: Session, message: Exclude<ToNode, { type: 'hello' }>): void {
    const { connection } = session;
    const { table } = this.#replica;
    const reply = (answer: ToClient): void => {
      if (!session.isCut) connection.send(answer);
    };
    switch (message.type) {
      case 'write': {
        const { tag, offset, length, value } = message;
        const range = { offset, length };
        this.#replica.write({
          ...{ owner: session.owner, range, values: unitsOf(range).map(() => value) },
          granted: () => this.#membership.noteWrite(offset, length),
          ended: (outcome) =>
            outcome !== 'dropped' && reply({ type: 'done', tag, error: outcome === 'done' ? 0 : EIO }),
        });
        break;
      }
      case 'read': {
        const { tag } = message;
        const units = unitsOf(message);
        this.#world.after(this.#world.delay(READ_MS) * this.#replica.slowness, () =>
          this.#enter(() => {
            const values = this.#replica.read(units);
            if (values === null) this.#onDamage(units);
            reply(values === null ? { type: 'done', tag, error: EIO } : { type: 'data', tag, values });
          }),
        );
        break;
      }
      case 'flush': {
        const { tag } = message;
        if (this.#mutation === 'clear-without-checkpoint') {
          this.#replica.checkpoint(this.#replica.nextStamp());
        }
        this.#replica.flush(() => reply({ type: 'done', tag, error: 0 }));
        break;
      }
      case 'mark': {
        const { installed } = this.#membership;
        const { number } = message.mark;
        const epoch = this.#mutation === 'answer-before-install' ? installed.epoch : message.mark.epoch;
        this.#membership.mark({ number, epoch }, () => this.#replica.nextStamp());
        break;
      }
      case 'checkpoint': {
        const { installed } = this.#membership;
        const { number } = message.mark;
        const epoch = this.#mutation === 'answer-before-install' ? installed.epoch : message.mark.epoch;
        const covered = this.#membership.covered({ number, epoch });
        if (covered === null) break;
        const isUnmarked = this.#mutation === 'checkpoint-without-mark';
        this.#replica.checkpoint(isUnmarked ? this.#replica.nextStamp() : covered);
        break;
      }
      default: {
        const { sinceEpoch } = message;
        const regions = sinceEpoch === null ? table.intents() : table.since(sinceEpoch);
        reply({ type: 'regions', regions: [...regions] });
      }
    }
  }
}

/** A fresh map that forgets everything, for a mutation. */
export class ForgetfulMap extends FreshMap {
  override add(): void {}
}
