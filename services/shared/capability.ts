/**
 * Capabilities: what the control plane allows somebody to do with one volume, signed by it and checked by the nodes.
 *
 *     base64url(JSON {"v": volumeId, "g": generation, "m": mode, "x": expiry}) "." base64url(signature of the first part)
 *
 * Ed25519, so that a node that gives away its key gives away nothing. All characters are safe in an export name.
 */
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign,
  verify,
} from 'node:crypto';
import { type Static, Type } from 'typebox';
import { Compile } from 'typebox/compile';
import { BlockwireError } from './errors.ts';

/**
 * - `writer`: the agent that has the volume.
 * - `peer`: another node of the cluster; it reads.
 * - `client`: whoever was given a URI; reads and writes as long as nothing newer is installed.
 * - `reader`: reads only.
 */
export const CapabilityModeSchema = Type.Enum(['writer', 'peer', 'client', 'reader']);
export type CapabilityMode = Static<typeof CapabilityModeSchema>;

export interface Capability {
  readonly volumeId: string;
  readonly generation: number;
  readonly mode: CapabilityMode;
  /** Seconds since 1970; from then on it is void. */
  readonly expiresAt: number;
}

const Claims = Type.Object(
  {
    v: Type.String({ minLength: 1, maxLength: 128 }),
    g: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
    m: CapabilityModeSchema,
    x: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
  },
  { additionalProperties: false },
);
const claimsValidator = Compile(Claims);

const TOKEN_LENGTH_MAX = 1024;
const TOKEN_PATTERN = /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})$/;
export const PUBLIC_KEY_BYTES = 32;

/** The control plane's side: it alone can sign. */
export class CapabilitySigner {
  readonly #privateKey: KeyObject;
  /** The raw 32 bytes, for the nodes. */
  readonly publicKey: Buffer;

  /** @param privateKey PKCS #8 in DER, as `generateCapabilityKey` gives it. Throws BW_INTERNAL when it is none. */
  constructor(privateKey: Uint8Array) {
    try {
      this.#privateKey = createPrivateKey({ key: Buffer.from(privateKey), format: 'der', type: 'pkcs8' });
      const { x } = createPublicKey(this.#privateKey).export({ format: 'jwk' });
      this.publicKey = Buffer.from(x ?? '', 'base64url');
    } catch (error) {
      throw new BlockwireError('BW_INTERNAL', 'the stored key for capabilities cannot be read', {
        cause: error,
      });
    }
  }

  sign({ volumeId, generation, mode, expiresAt }: Capability): string {
    const claims: Static<typeof Claims> = { v: volumeId, g: generation, m: mode, x: expiresAt };
    const payload = Buffer.from(JSON.stringify(claims)).toString('base64url');
    return `${payload}.${sign(null, Buffer.from(payload), this.#privateKey).toString('base64url')}`;
  }
}

/** A new private key, PKCS #8 in DER. */
export function generateCapabilityKey(): Buffer {
  return generateKeyPairSync('ed25519').privateKey.export({ format: 'der', type: 'pkcs8' });
}

/** A node's side. */
export class CapabilityVerifier {
  readonly #publicKey: KeyObject;

  /** @param publicKey the raw 32 bytes. Throws BW_INVALID_ARGUMENT when it is no key. */
  constructor(publicKey: Uint8Array) {
    if (publicKey.length !== PUBLIC_KEY_BYTES) {
      throw new BlockwireError(
        'BW_INVALID_ARGUMENT',
        `a capability key has ${PUBLIC_KEY_BYTES} bytes, not ${publicKey.length}`,
      );
    }
    const x = Buffer.from(publicKey).toString('base64url');
    this.#publicKey = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x }, format: 'jwk' });
  }

  /**
   * What a token allows, when it is genuine and not expired. The caller compares volume and generation with its own.
   * Throws BW_CAPABILITY_INVALID.
   *
   * @param nowSeconds since 1970
   */
  verify(token: string, nowSeconds: number): Capability {
    const match = token.length <= TOKEN_LENGTH_MAX ? TOKEN_PATTERN.exec(token) : null;
    const [, payload, signature] = match ?? [];
    if (payload === undefined || signature === undefined) throw invalid('is no token');
    if (!verify(null, Buffer.from(payload), this.#publicKey, Buffer.from(signature, 'base64url'))) {
      throw invalid('was not signed by the control plane of this node');
    }
    const claims = parseClaims(payload);
    if (claims === null) throw invalid('says what this version does not understand');
    const { v: volumeId, g: generation, m: mode, x: expiresAt } = claims;
    if (nowSeconds >= expiresAt) throw invalid('has expired; ask the control plane for the address again');
    return { volumeId, generation, mode, expiresAt };
  }
}

function parseClaims(payload: string): Static<typeof Claims> | null {
  try {
    const claims: unknown = JSON.parse(Buffer.from(payload, 'base64url').toString('utf8'));
    return claimsValidator.Check(claims) ? claims : null;
  } catch {
    return null;
  }
}

function invalid(what: string): BlockwireError {
  return new BlockwireError('BW_CAPABILITY_INVALID', `the capability ${what}`);
}
