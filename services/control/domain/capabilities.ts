/**
 * The names under which nodes serve a volume, each with a capability: what its holder may do, and for how long. The key
 * that signs them is made once and kept in the store.
 */
import {
  type CapabilityMode,
  CapabilitySigner,
  generateCapabilityKey,
} from '@blockwire/shared/capability.ts';
import { formatExportName } from '@blockwire/shared/export-name.ts';
import type { MetadataStore } from '../store/store.ts';
import { commitRound } from './commit.ts';
import { secrets, type VolumeRecord } from './records.ts';

const HOUR_S = 3600;

/** Users' addresses last a day; the cluster's own come anew with every membership. */
const LIFE_S: Readonly<Record<CapabilityMode, number>> = {
  writer: 30 * 24 * HOUR_S,
  peer: 30 * 24 * HOUR_S,
  client: 24 * HOUR_S,
  reader: 24 * HOUR_S,
};

const KEY_NAME = 'capability';

export type NamedVolume = Pick<VolumeRecord, 'id' | 'generation'>;

/** Gives export names; the simulator has its own, without signatures. */
export interface ExportNames {
  /** `VOLUME[@SNAPSHOT]?cap=TOKEN` for the volume's present generation. */
  nameOf(volume: NamedVolume, mode: CapabilityMode, snapshot?: string): string;
}

export class Capabilities implements ExportNames {
  readonly #signer: CapabilitySigner;
  readonly #now: () => number;

  /** @param now milliseconds since 1970 */
  constructor(privateKey: Uint8Array, now: () => number) {
    this.#signer = new CapabilitySigner(privateKey);
    this.#now = now;
  }

  /** What nodes verify with: the raw 32 bytes. */
  get publicKey(): Buffer {
    return this.#signer.publicKey;
  }

  nameOf({ id, generation }: NamedVolume, mode: CapabilityMode, snapshot?: string): string {
    // The same name for an hour, so that repeated answers are equal.
    const hour = Math.floor(this.#now() / 1000 / HOUR_S) * HOUR_S;
    const expiresAt = hour + HOUR_S + LIFE_S[mode];
    const capability = this.#signer.sign({ volumeId: id, generation, mode, expiresAt });
    const session = { epoch: null, link: null, attempt: null };
    return formatExportName({ volumeId: id, snapshot: snapshot ?? null, capability, ...session });
  }
}

/** The cluster's key: the one in the store, or a new one. Nodes keep what they were told, so it must never be lost. */
export async function loadCapabilities(store: MetadataStore, now: () => number): Promise<Capabilities> {
  const privateKey = await commitRound<string>(store, async () => {
    const found = await secrets.get(store, KEY_NAME);
    if (found !== null) return { changes: [], result: found.value.privateKey };
    const made = generateCapabilityKey().toString('base64');
    return { changes: [secrets.create(KEY_NAME, { privateKey: made })], result: made };
  });
  return new Capabilities(Buffer.from(privateKey, 'base64'), now);
}
