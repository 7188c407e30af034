import assert from 'node:assert/strict';
import { it } from 'node:test';
import { describeExit } from './processes.ts';

it('names the signal behind an exit code', () => {
  assert.equal(describeExit(139), 'signal SIGSEGV');
  assert.equal(describeExit(133), 'signal SIGTRAP');
  assert.equal(describeExit(1), 'exit code 1');
  assert.equal(describeExit(128), 'exit code 128');
});
