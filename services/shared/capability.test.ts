import assert from 'node:assert/strict';
import { createPrivateKey, sign } from 'node:crypto';
import { test } from 'node:test';
import {
  type Capability,
  CapabilitySigner,
  CapabilityVerifier,
  generateCapabilityKey,
} from './capability.ts';

const NOW = 1_800_000_000;
const key = generateCapabilityKey();
const signer = new CapabilitySigner(key);
const verifier = new CapabilityVerifier(signer.publicKey);
const capability: Capability = {
  volumeId: 'vol-000000000001',
  generation: 7,
  mode: 'writer',
  expiresAt: NOW + 60,
};

/** A token that is genuine, whatever it says. */
function signed(text: string): string {
  const payload = Buffer.from(text).toString('base64url');
  const privateKey = createPrivateKey({ key, format: 'der', type: 'pkcs8' });
  return `${payload}.${sign(null, Buffer.from(payload), privateKey).toString('base64url')}`;
}

const refused = (token: string, pattern: RegExp, nowSeconds = NOW): void =>
  assert.throws(
    () => verifier.verify(token, nowSeconds),
    (error: { code: string; message: string }) =>
      error.code === 'BW_CAPABILITY_INVALID' && pattern.test(error.message),
    token,
  );

test('what was signed is what is verified, until it expires', () => {
  const token = signer.sign(capability);
  assert.match(token, /^[A-Za-z0-9_.-]+$/);
  assert.deepEqual(verifier.verify(token, NOW), capability);
  assert.deepEqual(verifier.verify(token, capability.expiresAt - 1), capability);
  refused(token, /expired/, capability.expiresAt);
});

test('a key that was stored signs what its public key verifies', () => {
  const again = new CapabilitySigner(Uint8Array.from(key));
  assert.equal(again.publicKey.length, 32);
  assert.deepEqual(again.publicKey, signer.publicKey);
  assert.deepEqual(verifier.verify(again.sign(capability), NOW), capability);
});

test('forged tokens are refused: another key, another payload, a changed signature', () => {
  refused(new CapabilitySigner(generateCapabilityKey()).sign(capability), /not signed/);
  const [payload = '', signature = ''] = signer.sign(capability).split('.');
  const [other = ''] = signer.sign({ ...capability, generation: 8 }).split('.');
  refused(`${other}.${signature}`, /not signed/);
  const bytes = Buffer.from(signature, 'base64url');
  for (const index of [0, 31, 32, 63]) {
    const changed = Buffer.from(bytes);
    changed[index]! ^= 1;
    refused(`${payload}.${changed.toString('base64url')}`, /not signed/);
  }
});

test('malformed tokens are refused', () => {
  const token = signer.sign(capability);
  const [payload = '', signature = ''] = token.split('.');
  for (const text of [
    '',
    '.',
    payload,
    `${payload}.`,
    `.${signature}`,
    `${token}.`,
    `${token}A`,
    `${token}\n`,
    ` ${token}`,
    `${payload}=.${signature}`,
    `${'A'.repeat(2000)}.${signature}`,
  ]) {
    refused(text, /no token/);
  }
});

test('a genuine token that says anything else is refused', () => {
  const good = { v: 'vol-000000000001', g: 7, m: 'writer', x: NOW + 60 };
  assert.deepEqual(verifier.verify(signed(JSON.stringify(good)), NOW), capability);
  for (const text of [
    '',
    'null',
    '[]',
    '{',
    JSON.stringify({ ...good, more: 1 }),
    JSON.stringify({ ...good, m: 'root' }),
    JSON.stringify({ ...good, g: 0 }),
    JSON.stringify({ ...good, g: 1.5 }),
    JSON.stringify({ ...good, g: '7' }),
    JSON.stringify({ ...good, v: '' }),
    JSON.stringify({ ...good, x: 2 ** 60 }),
    JSON.stringify({ v: good.v, g: good.g, m: good.m }),
  ]) {
    refused(signed(text), /no token|not understand/);
  }
});

test('what is no key is refused', () => {
  for (const length of [0, 31, 33]) {
    assert.throws(() => new CapabilityVerifier(new Uint8Array(length)), { code: 'BW_INVALID_ARGUMENT' });
  }
  assert.throws(() => new CapabilitySigner(new Uint8Array(48)), { code: 'BW_INTERNAL' });
});
