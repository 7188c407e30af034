import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockwireError, ERROR_TABLE, isErrorCode, toBlockwireError } from './errors.ts';

test('every code has an HTTP error status, a gRPC status and an NBD error of the specification', () => {
  const nbdErrors = [1, 5, 12, 22, 28, 75, 95, 108];
  for (const [code, { http, grpc, nbd }] of Object.entries(ERROR_TABLE)) {
    assert.match(code, /^BW_[A-Z_]+$/);
    assert.ok(http >= 400 && http < 600, code);
    assert.ok(grpc > 0 && grpc <= 16, code);
    assert.ok(nbdErrors.includes(nbd), code);
  }
});

test('what is thrown keeps its code; anything else gets the fallback', () => {
  const known = new BlockwireError('BW_VOLUME_IN_USE', 'detach it first');
  assert.equal(toBlockwireError(known), known);
  assert.equal(toBlockwireError(new Error('odd')).code, 'BW_INTERNAL');
  assert.equal(toBlockwireError('odd', 'BW_IO').code, 'BW_IO');
  assert.equal(isErrorCode('BW_IO'), true);
  assert.equal(isErrorCode('toString'), false);
});
