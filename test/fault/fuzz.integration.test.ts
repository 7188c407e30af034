/** A live node and clients that are broken in every way the corpus and its mutations know. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { bytesOf, loadCorpus } from './corpus.ts';
import { FUZZ_VOLUME, FuzzTarget, hangUps, mutations } from './fuzz.ts';
import { NbdSession } from './nbd-session.ts';

const SEED = Number(process.env.BLOCKWIRE_FUZZ_SEED ?? 20_261);
const CASES = 3000;
const AT_ONCE = 12;

describe('a node among broken clients', () => {
  let directory: string;
  let target: FuzzTarget;
  before(async () => {
    directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-fuzz-'));
    target = await FuzzTarget.start(join(directory, 'data'), ['--workers', '2', '--buffer-mib', '16']);
    await target.check();
  });
  after(async () => {
    await target?.end();
    rmSync(directory, { recursive: true, force: true });
  });

  it('the corpus itself is served', async () => {
    const whole = loadCorpus().map(({ frames }, index) => {
      const conversation = { bytes: bytesOf(frames), cuts: [], ending: 'finish' as const };
      return [index, conversation] as const;
    });
    await target.play(whole, AT_ONCE);
    await target.check();
    // What the samples write is there: they were understood, not merely survived.
    const session = await NbdSession.open(target.node.nbd, { exportName: FUZZ_VOLUME });
    const { data } = await session.request(0, 0x1000, 4096);
    assert.ok(data.subarray(0, 4096).every((byte) => byte === 0 || byte === 0x5a || byte === 0x33));
    session.destroy();
  });

  it('a hang-up at every byte of a conversation', async () => {
    await target.play(hangUps(), AT_ONCE);
    await target.check();
  });

  it(`${CASES} mutated conversations, seed ${SEED}`, async () => {
    for (let at = 0; at < CASES; at += 500) {
      await target.play(mutations(SEED, at, at + 500), AT_ONCE);
      await target.check();
    }
  });
});
