import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SimulatedIo, seededRandom } from '../testing/simulated-io.ts';
import { Gathering, OPEN_MIN, PAUSE_US_MAX } from './gathering.ts';

/** A round through the kernel, and what each request adds to it; a client needs longer for one. */
const ROUND_US = 6;
const REQUEST_US = 2;
const CLIENT_US = 8;

/**
 * Serves a client that keeps `open` requests open: one thread, which takes an answer and sends a request every CLIENT_US. Returns
 * how long it took and what was seen on the way.
 */
function serve(options: { open: number; requests: number; gathering?: Gathering; io?: SimulatedIo }) {
  const io = options.io ?? new SimulatedIo(4096, seededRandom(1));
  const gathering = options.gathering ?? new Gathering(io, 4);
  if (options.gathering === undefined) gathering.begin(0);
  const clock = io.clock;
  const startUs = clock[0]!;
  let clientUs = startUs;
  /** Answers that the client has not taken yet, with the time when they were there; and requests that it has sent. */
  const answers = new Array<number>(options.open).fill(startUs);
  const sent: number[] = [];
  let served = 0;
  let receives = 0;
  let longestUs = 0;
  let paused = 0;
  const client = (): void => {
    while (answers.length > 0 && Math.max(clientUs, answers[0]!) + CLIENT_US <= clock[0]!) {
      clientUs = Math.max(clientUs, answers.shift()!) + CLIENT_US;
      sent.push(clientUs);
    }
  };
  while (served < options.requests) {
    const askedUs = clock[0]!;
    if (!gathering.mayReceive(0)) {
      paused++;
      let resumed = false;
      while (!resumed) {
        assert.ok(gathering.leftUs >= 1);
        clock[0]! += gathering.leftUs;
        gathering.release((connection) => {
          assert.equal(connection, 0);
          resumed = true;
        });
      }
      assert.equal(gathering.leftUs, -1);
      assert.ok(gathering.mayReceive(0));
    }
    longestUs = Math.max(longestUs, clock[0]! - askedUs);
    client();
    while (sent.length === 0) {
      clock[0]! += 1;
      client();
    }
    receives++;
    const batch = sent.length;
    sent.length = 0;
    served += batch;
    for (let i = 0; i < batch; i++) gathering.count(0);
    clock[0]! += ROUND_US + batch * REQUEST_US;
    client();
    for (let i = 0; i < batch; i++) answers.push(clock[0]!);
  }
  const perRequestUs = (clock[0]! - startUs) / served;
  return { io, gathering, receives, paused, longestUs, perReceive: served / receives, perRequestUs };
}

test('a client that waits for each answer, or has few requests open, waits for nothing but rare probes', () => {
  for (const open of [1, 2, OPEN_MIN - 1]) {
    const { perRequestUs, paused, receives } = serve({ open, requests: 50_000 });
    assert.ok(paused < receives / 1000, `${paused} pauses in ${receives} receives with ${open} open`);
    const unpaused = open === 1 ? ROUND_US + REQUEST_US + CLIENT_US : CLIENT_US;
    assert.ok(perRequestUs < unpaused * 1.03, `${perRequestUs} us a request with ${open} open`);
  }
});

test('requests of a client with many open are gathered, and the client never runs out of answers', () => {
  for (const open of [16, 32, 128]) {
    const { perReceive, perRequestUs } = serve({ open, requests: 50_000 });
    assert.ok(perReceive > 4, `${perReceive} requests a receive with ${open} open`);
    assert.ok(perReceive <= open / 2 + 2, `${perReceive} requests a receive with ${open} open`);
    assert.ok(perRequestUs < CLIENT_US * 1.03, `${perRequestUs} us a request with ${open} open`);
  }
});

test('a client that goes on with few requests open is not held up for long', () => {
  const { io, gathering } = serve({ open: 32, requests: 50_000 });
  // Until the next probe tells.
  serve({ open: 1, requests: 5000, io, gathering });
  assert.equal(serve({ open: 1, requests: 100, io, gathering }).longestUs, 0);
});

test('a new connection knows nothing of the one before', () => {
  const { io, gathering } = serve({ open: 32, requests: 50_000 });
  gathering.begin(0);
  assert.equal(serve({ open: 1, requests: 50, io, gathering }).paused, 0);
});

test('a pause has its bound', () => {
  const { io, gathering } = serve({ open: 128, requests: 50_000 });
  const { longestUs, paused } = serve({ open: 128, requests: 1000, io, gathering });
  assert.ok(paused > 0 && longestUs <= PAUSE_US_MAX, `${paused} pauses, the longest of ${longestUs} us`);
});
