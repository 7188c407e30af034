/** What a data connection does about lost packets while little is under way, on a link that drops everything. Needs root. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { allocateRegion, PAGE_SIZE_BYTES } from '@blockwire/native/memory.ts';
import { native } from '@blockwire/native/native.ts';
import { Ring } from '@blockwire/native/ring.ts';
import { encodeSockaddr, openTcp, resetOnClose, tuneDataSocket } from '@blockwire/native/sockets.ts';
import { IoringOp, MSG_NOSIGNAL } from '@blockwire/native/uapi/io-uring.ts';
import { LabNetwork } from '../e2e/lab-network.ts';
import { eventually } from '../e2e/wait.ts';
import { findProgram, runProgram } from '../vm/programs.ts';

const IPPROTO_TCP = 6;
const TCP_CONGESTION = 13;
const PORT = 7000;
const UNACKED_MS = 60_000;
const REQUEST_BYTES = 28;
/** Takes bytes and says how many there were. */
const SINK = `
  let taken = 0;
  const say = (what) => process.stdout.write(what + '\\n');
  const take = (socket) => socket.on('data', ({ length }) => say(taken += length));
  require('node:net').createServer(take).listen(${PORT}, () => say('ready'));
`;

test('it sends again at an even pace, and goes on when the link is back', async (t) => {
  const name = `bwlost-${process.pid}`;
  const network = await LabNetwork.create(name, 1);
  t.after(() => network.remove());
  const { netns, address } = await network.add('sink');
  const sink = spawn(findProgram('ip'), ['netns', 'exec', netns, process.execPath, '-e', SINK]);
  t.after(() => sink.kill('SIGKILL'));
  await once(sink.stdout, 'data');

  const ring = new Ring({ entries: 8 });
  const memory = allocateRegion(PAGE_SIZE_BYTES);
  const results: number[] = [];
  const handler = ring.addHandler({ complete: (_operation, _data, result) => results.push(result) });
  const { family, bytes } = encodeSockaddr({ address, port: PORT });
  memory.bytes.set(bytes);
  const fd = openTcp(family);
  t.after(() => {
    native.close(fd);
    ring.close();
  });
  tuneDataSocket(fd, UNACKED_MS);
  resetOnClose(fd);
  // BBR, which may be this host's default, does not keep the pace.
  native.setSocketOption(fd, IPPROTO_TCP, TCP_CONGESTION, Buffer.from('reno'));
  ring.prepare(IoringOp.CONNECT, 0, 0, fd, bytes.length, memory.address, 0, 0, handler, 0, 0);
  const send = (): void => {
    ring.send(fd, memory, 0, REQUEST_BYTES, MSG_NOSIGNAL, 0, handler, 0, 0);
    ring.enter(1, UNACKED_MS);
    ring.dispatch();
  };
  ring.enter(1, UNACKED_MS);
  ring.dispatch();
  send();
  await once(sink.stdout, 'data');

  await network.setLink('sink', 'down');
  send();
  // iproute2 prints `retrans:IN_FLIGHT/TOTAL`, and `backoff:N` once a timeout has been doubled N times.
  const states: string[] = [];
  const look = async (): Promise<string> => {
    const said = await runProgram('ss', ['-tinH', 'state', 'established', 'dst', `${address}:${PORT}`]);
    states.push(said);
    return said;
  };
  const said = await eventually(look, (now) => Number(/\bretrans:\d+\/(\d+)/.exec(now)?.[1] ?? 0) >= 4);
  assert.doesNotMatch(said, /\bbackoff:/, states.join(''));

  await network.setLink('sink', 'up');
  await once(sink.stdout, 'data');
  assert.deepEqual(results, [0, REQUEST_BYTES, REQUEST_BYTES]);
});
